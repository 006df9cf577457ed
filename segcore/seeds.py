"""Seeds that are a function of names and numbers."""

import hashlib


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed that is a function of its parts alone, so that order, workers and ranks change nothing."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
