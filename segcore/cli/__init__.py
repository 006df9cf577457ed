"""The terminal: options, errors, progress, provenance."""

import os
import sys

if sys.platform == "linux":
    # Arrow asks for it once, as it is loaded, which stages do after this: its readers of files, too, take memory where
    # `data/arrow_memory.py` has it handed back at once. 40 MB of a million images' manifest would stay otherwise.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "jemalloc")
