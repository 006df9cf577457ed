"""The terminal: options, errors, progress, provenance."""
