"""Heads that are fitted to stored features at once, instead of trained step by step."""
