"""What `docs/performance.md` quotes, measured on this machine: `python -m benchmarks`, or one module alone."""
