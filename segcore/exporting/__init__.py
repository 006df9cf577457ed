"""A finished model as one file for other runtimes: ONNX, or torch's own `.pt2`, checked against the model it is of."""
