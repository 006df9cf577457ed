"""The parts of `benchmarks.next_frozen`: a learner over stored features, and the rules that choose."""
