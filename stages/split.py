"""Choose the strong images (masks), the weak images (tags) and the validation images.

Writes into `out`: `strong.txt`, `weak.txt`, `val.txt` with one image id a line, and `split.json` with counts.
"""

import json
from pathlib import Path

from segcore.cli import command, console, provenance
from segcore.data import splits
from segcore.data.manifest import read_class_names, read_manifest
from segcore.errors import Problem
from segcore.files import write_atomically


def main(*, manifest: Path, classes: Path, out: Path, params: Path = Path("params.yaml")) -> None:
    settings = command.settings(params)
    if not console.is_main_process():
        return
    with provenance.timed("split"):
        records = read_manifest(manifest)
        names = read_class_names(classes)
        listed = _read_list(Path(settings.split.strong_list)) if settings.split.strong_list else None
        chosen = splits.choose(records, names, listed, settings.split, settings.seed)
        counts = splits.counts(chosen, records, names)
        out.mkdir(parents=True, exist_ok=True)
        for name in ("strong", "weak", "val"):
            lines = "".join(f"{image_id}\n" for image_id in getattr(chosen, name))
            write_atomically(out / f"{name}.txt", lines.encode())
        write_atomically(out / "split.json", (json.dumps(counts, indent=2) + "\n").encode())
        console.say(
            f"{len(chosen.strong)} strong, {len(chosen.weak)} weak and {len(chosen.val)} validation images: {out}"
        )


def _read_list(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise Problem(
            f"split.strong_list: {path} cannot be read ({error}); give a text file with an id a line"
        ) from error


if __name__ == "__main__":
    command.start(main)
