"""A local web page: look at what a model predicts, correct it with a brush, and save it as a mask to learn from."""
