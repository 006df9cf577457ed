"""What `benchmarks.gpu` measures: a function a part, each of which runs in a process of its own."""
