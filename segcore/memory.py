"""Memory that a network gives back is kept for its next tensors, instead of going to the system and back."""

import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD, MOST_ARENAS = -1, -3, -8
"""Of glibc's `mallopt`."""

KEPT = 40 * 2**20
"""Bytes up to which a piece is kept: the maps of a network are, a picture of 24 megapixels is not."""

KEPT_AT_LEAST = 32 * 2**20
"""What an older glibc takes, which refuses more."""


def keep() -> None:
    """Have this process keep memory from now on; where it has no glibc, nothing happens.

    Half of a network's time on a CPU may else go into pages that are taken from the system and cleared for each map
    anew. It is the process's own decision, so commands ask for it, and nothing that is imported.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    # Without a threshold, the next line would have every piece go back: nothing is set then.
    if mallopt is not None and (mallopt(MMAP_THRESHOLD, KEPT) or mallopt(MMAP_THRESHOLD, KEPT_AT_LEAST)):
        mallopt(TRIM_THRESHOLD, 2**31 - 1)
        mallopt(MOST_ARENAS, 1)  # those of other threads give their memory back all the same
