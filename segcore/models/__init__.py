"""Finished models on disk: `model.safetensors` and a `model.json` that says what it is. Nothing is unpickled."""
