"""Which images a person should annotate next."""
