"""The one training loop and its resumable state."""
