"""`.pt2`, torch's own format: the file, and how it is read again.

`torch.export.load` unpickles what an archive marks as pickled: weights and constants that are subclasses of tensors,
and objects of other classes. What is written here holds none of them, no example inputs either, and that is looked at
in the archive itself before it is loaded: so nothing is unpickled, and no file that somebody else wrote is loaded.
"""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segcore.errors import Problem
from segcore.exporting.graphs import Graph, quiet


def write(graph: Graph, path: Path) -> None:
    """One file, weights included."""
    program = graph.program
    program.example_inputs = None
    content = io.BytesIO()
    with quiet():
        torch.export.save(program, content)
    path.write_bytes(content.getvalue())


def pickled(path: Path) -> list[str]:
    """What an archive asks to be unpickled, by name."""
    found: list[str] = []
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith("_config.json"):
                config = json.loads(archive.read(name)).get("config", {})
                found += [key for key, payload in config.items() if payload.get("use_pickle") is not False]
            elif "/custom_obj" in name or "sample_inputs" in name:
                found += [name] if archive.getinfo(name).file_size else []
    return found


class Loaded:
    """A file that was just written, loaded again.

    Raises:
        Problem: it would have to be unpickled.
    """

    def __init__(self, path: Path) -> None:
        if found := pickled(path):
            raise Problem(f"--format pt2: torch pickled {', '.join(found[:3])}, and nothing is unpickled here")
        with quiet():
            self.module: Any = torch.export.load(io.BytesIO(path.read_bytes())).module()

    def __call__(self, value: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return self.module(torch.from_numpy(value)).numpy()
