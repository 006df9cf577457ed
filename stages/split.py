"""Choose the strong images (masks), the weak images (tags) and the validation images.

Writes into `out`: `strong.txt`, `weak.txt`, `val.txt` with one image id a line, `tags.csv` with the tags of training
images as training sees them (with mistakes, if `tag_noise` asks for some), and `split.json` with counts; into `masks`:
`masks.csv`, which names the masks that training may see. Cues and saliency maps that were handed in are checked against
these images.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from segcore.cli import command, console, provenance
from segcore.config import fingerprints
from segcore.config import plan as plans
from segcore.config.data import StrongList
from segcore.data import handed_in, seen_tags, splits
from segcore.data.manifest import read_class_names, read_ids, read_manifest
from segcore.data.records import Records
from segcore.errors import Problem
from segcore.files import as_cell, write_atomically
from segcore.made_of import TAGS_FILE


def main(*, manifest: Path, classes: Path, out: Path, masks: Path, params: Path = Path("params.yaml")) -> None:
    settings = command.settings(params)
    plan = plans.split(settings)
    if not console.is_main_process():
        return
    with provenance.timed("split", out):
        records = read_manifest(manifest)
        names = read_class_names(classes)
        strong = plan.split.strong
        listed = _read_list(Path(strong.file)) if isinstance(strong, StrongList) else None
        chosen = splits.choose(records, names, listed, plan.split, plan.seed, settings.needing_masks)
        seen = seen_tags.tags_seen(chosen, records, len(names) - 1, plan.split.tag_noise, plan.seed)
        lists = {name: records.of(getattr(chosen, name)) for name in ("strong", "weak")}
        handed_in.check(settings.pseudo_labels, lists, names, out.parent)
        counts = {"parameters": fingerprints.of(plan)} | splits.counts(chosen, records, names)
        counts["tags_seen"] = seen_tags.mistakes(seen, records)
        out.mkdir(parents=True, exist_ok=True)
        for name in ("strong", "weak", "val"):
            lines = "".join(f"{image_id}\n" for image_id in getattr(chosen, name))
            write_atomically(out / f"{name}.txt", lines.encode())
        write_atomically(out / TAGS_FILE, seen_tags.tags_table(seen, names))
        masks.mkdir(parents=True, exist_ok=True)
        write_atomically(masks / splits.MASKS_FILE, _masks(records, chosen.strong).encode())
        write_atomically(out / "split.json", (json.dumps(counts, indent=2) + "\n").encode())
        if not chosen.strong:
            console.say("no training image has a mask: everything is learned from tags alone")
        console.say(
            f"{len(chosen.strong)} strong, {len(chosen.weak)} weak and {len(chosen.val)} validation images: {out}"
        )


def _masks(records: Records, strong: Sequence[str]) -> str:
    """The masks that training may see: image_id,labels_sha256."""
    lines = [f"{as_cell(record.image_id)},{record.labels_sha256}\n" for record in records.of(strong)]
    return "".join(["image_id,labels_sha256\n", *lines])


def _read_list(path: Path) -> list[str]:
    try:
        return read_ids(path.expanduser())
    except FileNotFoundError:
        reason = "there is no such file"
    except Problem as problem:
        reason = str(problem)
    raise Problem(f"split.strong.file: {path} cannot be read ({reason}); give a text file with an id a line")


if __name__ == "__main__":
    command.start(main)
