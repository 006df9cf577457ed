"""What `params.yaml` may hold: strict models without defaults, and the only reader of YAML."""
