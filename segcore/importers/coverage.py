"""What the masks of a whole split show: a class that no mask shows can be neither learned from them nor measured.

The usual cause is a mask of 0 and 255, as paint and label tools export one class: 255 means unknown here.
"""

from collections.abc import Sequence
from typing import get_args

from segcore.data.manifest import Split
from segcore.data.pictures import IGNORE
from segcore.errors import some
from segcore.importers import Finding

MEANT = f"{IGNORE} means unknown here; if it was meant as a class, write the index of that class instead, "


def judged(findings: Sequence[Finding], classes: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Problems for splits whose masks show no class at all; warnings for classes that no mask of a split shows.

    Splits with anything unreadable are passed over: their own problems are told first.
    """
    problems: list[str] = []
    warnings: list[tuple[str, str]] = []
    for split in get_args(Split):
        of_split = [finding for finding in findings if finding.entry.split == split]
        if not of_split or any(finding.record is None for finding in of_split):
            continue
        masks = [finding for finding in of_split if finding.record and finding.record.labels is not None]
        shown = {one for finding in masks if finding.record for one in finding.record.label_classes or ()}
        named = {one for finding in of_split if finding.record for one in finding.record.tags}
        if masks and not shown:
            problems.append(_nothing(split, masks, classes))
            continue
        hint = f" ({MEANT}{len(classes) - 1} at most)" if any(finding.unknown for finding in masks) else ""
        if masks and (lacking := _names(set(range(1, len(classes))) - shown, classes)):
            use = "nothing measures it: its IoU is null" if split == "val" else "nothing but tags teaches it"
            warnings.append(
                ("class_in_no_mask", f"no mask of the {len(masks)} of {split} shows {some(lacking)}; {use}{hint}")
            )
        if split == "train" and (lacking := _names(set(range(1, len(classes))) - shown - named, classes)):
            text = f"no training image shows or names {some(lacking)}; it cannot be learned"
            warnings.append(("class_of_no_image", text))
    return problems, warnings


def _nothing(split: str, masks: Sequence[Finding], classes: Sequence[str]) -> str:
    with_unknown = sum(finding.unknown for finding in masks)
    first = next((finding for finding in masks if finding.unknown), masks[0]).entry.labels
    what = f"none of the {len(masks)} masks of {split} shows a class"
    if with_unknown:
        return (
            f"{what}: they hold 0 (background) and {IGNORE} (unknown) alone, {first} for one; "
            f"{MEANT}1 for '{classes[1]}'"
        )
    return f"{what}: they hold 0 (background) alone, {first} for one; give masks with the indices of classes.txt"


def _names(indices: set[int], classes: Sequence[str]) -> list[str]:
    return [classes[index] for index in sorted(indices)]
