"""Sum up what `params.yaml` names outside of the data set's folder, so that DVC sees that it changed.

This stage runs at every `dvc repro`, in half a second; what it writes is a dependency of `check_params`, so that
nothing else runs unless a file is another one. It judges nothing: `check_params`, `prepare` and `split` do.
"""

import json
from pathlib import Path

from segcore.cli import command, console
from segcore.config import outside, reading
from segcore.files import write_atomically

SCRATCH = Path(".scratch/outside_files")


def main(*, data: Path, params: Path = Path("params.yaml")) -> None:
    """Write the sums into `data`, the data set's folder."""
    given = reading.read(params)
    if not console.is_main_process():
        return
    dataset = given.get("dataset")
    root = dataset.get("root") if isinstance(dataset, dict) else None
    found = outside.sums(given, root, data, SCRATCH)
    data.mkdir(parents=True, exist_ok=True)
    write_atomically(data / outside.FILE, (json.dumps(found, indent=2) + "\n").encode())


if __name__ == "__main__":
    command.start(main)
