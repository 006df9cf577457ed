"""The parts of `benchmarks.manifest`: the data set that it opens."""
