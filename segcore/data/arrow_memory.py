"""Where Arrow takes memory from, and how it hands back what it needs no longer."""

import pyarrow as pa

if "jemalloc" in pa.supported_memory_backends():
    # It can hand back at once what a column took on its way; Arrow's others keep half of the manifest's size for later.
    pa.jemalloc_set_decay_ms(0)
    pa.set_memory_pool(pa.jemalloc_memory_pool())


def give_back() -> None:
    """Hand memory that is free to the system: Arrow and C's library keep what reading took on its way."""
    for pool in (pa.default_memory_pool(), pa.system_memory_pool()):
        pool.release_unused()
