"""Where shards of a store may be kept on this machine: `SEGCORE_CACHE`, a folder of `SEGCORE_CACHE_GB` gigabytes (20).

These are in the environment and not among the parameters, as they change no result.
"""

import os
from pathlib import Path

from segcore.data import kept_shards
from segcore.errors import Problem

FOLDER, GIGABYTES = "SEGCORE_CACHE", "SEGCORE_CACHE_GB"


def begin() -> None:
    """Keep shards from now on, if the environment says where.

    Raises:
        Problem: the bound is no number.
    """
    folder, bound = os.environ.get(FOLDER), os.environ.get(GIGABYTES, "20")
    try:
        most = float(bound) * 1e9
    except ValueError:
        most = -1.0
    if not 0 <= most < 1e18:
        raise Problem(f"{GIGABYTES}: found '{bound}'; it must be a number of gigabytes, such as 20")
    kept_shards.use(kept_shards.Cache(Path(folder).expanduser().absolute(), most) if folder else None)
