"""The model core: tensors and plain values. It knows no pipeline, prints nothing and reads no environment."""
