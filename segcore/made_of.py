"""What a result was made of: short fingerprints that lie beside it.

By them a reader tells results of today's data and parameters from others. `data_set` is that of the manifest, `images`
that of the lists learned from, `tags` that of the tags as training saw them (crops have none), `training` that of all
parameters behind a model, `prediction` that of how it is used and measured; `trained_on` is the data set of the model
that was measured.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segcore.files import fingerprint, write_atomically

FILE = "made_of.json"

TAGS_FILE = "tags.csv"
"""What the folder of the split holds: the tags of every training image as training sees them."""


def write(folder: Path, fingerprints: Mapping[str, str]) -> None:
    """Write the fingerprints of the result in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / FILE, (json.dumps(dict(fingerprints), indent=2) + "\n").encode())


def read(folder: Path) -> dict[str, Any]:
    """The fingerprints of the result in `folder`; none where it says nothing that can be read."""
    try:
        content = json.loads((folder / FILE).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def tags(split: Path) -> str:
    """The fingerprint of the tags that training sees by the folder of a split.

    Raises:
        FileNotFoundError: it has none.
    """
    return fingerprint("", [split / TAGS_FILE])
