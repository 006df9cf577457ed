"""The stages of the pipeline: each turns paths into objects, calls `segcore`, and writes files."""
