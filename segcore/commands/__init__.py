"""What a person starts and DVC does not."""
