"""The images of a project that may be annotated next, and those that were."""

from dataclasses import dataclass, replace
from pathlib import Path

from segcore.acquisition.choice import Kind
from segcore.data.manifest import Record, listed, read_class_names, read_manifest
from segcore.data.seen_tags import as_training_sees
from segcore.errors import Problem
from segcore.made_of import TAGS_FILE


@dataclass(frozen=True)
class Pool:
    """`wanting` lack the annotation, `known` have it; their records have the tags that training sees, () where none."""

    wanting: list[Record]
    known: list[Record]
    classes: list[str]
    kind: Kind

    def shown(self, known: Record) -> tuple[int, ...]:
        """The classes that a known image shows by its annotation of this kind."""
        return (known.label_classes or ()) if self.kind == "masks" else known.tags


def pool(data: Path, kind: Kind) -> Pool:
    """Of the data set in the folder `data`: training images alone, as those that measure are never looked at.

    For masks: images of the split without one, whether tagged or not; a mask that the split withholds is not seen.
    For tags: images that have neither.

    Raises:
        Problem: the data set or its split is not there, or nothing is left to annotate.
    """
    manifest, split = data / "prepared/manifest.parquet", data / "split"
    for file in (manifest, split / "strong.txt", split / "weak.txt", split / TAGS_FILE):
        if not file.is_file():
            raise Problem(f"{file} is not there: a project's data set and split are needed; run `dvc repro split`")
    classes, records = read_class_names(data / "prepared/classes.json"), read_manifest(manifest)
    strong, weak = ({*listed(split / f"{name}.txt", records)} for name in ("strong", "weak"))
    seen = as_training_sees(records, strong | weak, split, classes)
    training = [record for record in seen.values() if record.split == "train"]
    is_tagged = {r.image_id: bool(r.tags) and r.image_id in strong | weak for r in training}
    if kind == "masks":
        known = [record for record in training if record.image_id in strong]
        wanting = [record for record in training if record.image_id not in strong]
    else:
        known = [record for record in training if is_tagged[record.image_id]]
        wanting = [record for record in training if not is_tagged[record.image_id]]
    if not wanting:
        raise Problem(f"{data}: every training image has {kind}, so there is nothing to choose from")
    return Pool([_as_seen(record, is_tagged) for record in wanting], known, classes, kind)


def _as_seen(record: Record, is_tagged: dict[str, bool]) -> Record:
    """Without tags where the split uses none of them."""
    return record if is_tagged[record.image_id] else replace(record, tags=())
