"""The strong images S, which keep their masks, the weak images W, which go by their tags, and those to measure on.

As in Hong et al. 2015 (section 6.1), S is n images a class of the training set, and W is the whole training set.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from segcore.config.data import SplitParams, StrongAll, StrongList
from segcore.data.manifest import Record
from segcore.data.records import of
from segcore.errors import Problem, Problems
from segcore.seeds import derived_seed

MASKS_FILE = "masks.csv"
"""What the folder of masks holds: the images that keep theirs, and the hash of each."""


@dataclass(frozen=True)
class Splits:
    """Sorted image ids; `strong` and `weak` are training images, `val` are none."""

    strong: tuple[str, ...]
    weak: tuple[str, ...]
    val: tuple[str, ...]


def choose(
    records: Mapping[str, Record],
    classes: Sequence[str],
    listed: Sequence[str] | None,
    params: SplitParams,
    seed: int,
    needing: Sequence[str] = (),
) -> Splits:
    """Divide the images of a manifest.

    An image stands only for a class that its labels show, which its tags may exceed. `listed` are the lines of
    `split.strong.file` where that is asked for. Where no training image has labels, S is empty, unless entries of the
    parameters need it: `needing` are their names.

    Raises:
        Problem: S or W cannot be chosen as asked, or W would be empty; there are no labels, and entries need some.
    """
    train: set[str] = set()
    val: list[str] = []
    shown: dict[str, tuple[int, ...]] = {}
    for record in records.values():  # which are made one after the other, and not kept
        if record.split == "val":
            val.append(record.image_id)
            continue
        train.add(record.image_id)
        if record.label_classes is not None:
            shown[record.image_id] = record.label_classes
    how = params.strong
    if not shown and needing:
        raise Problem(
            f"no training image has labels, and these entries of params.yaml learn from masks: {', '.join(needing)}; "
            "add masks (or SBD's by dataset.sbd_root), or take these entries out: what learns from tags alone stays"
        )
    if not shown and not isinstance(how, StrongList):
        strong: list[str] = []
    elif isinstance(how, StrongList):
        strong = _listed(listed or (), records, shown)
    elif isinstance(how, StrongAll):
        strong = list(shown)
    else:
        strong = [image_id for picked in per_class(shown, classes, how.images, seed) for image_id in picked]
    weak: Collection[str] = train if params.weak_includes_strong else train - set(strong)
    if not weak:
        raise Problem(
            "split.weak_includes_strong: false leaves no image to go by its tags, as every training image is strong; "
            "set it to true or choose fewer strong images"
        )
    if params.weak_images is not None:
        weak = _fewer(weak, params.weak_images, seed)
    return Splits(tuple(sorted(strong)), tuple(sorted(weak)), tuple(sorted(val)))


def _fewer(weak: Collection[str], n: int, seed: int) -> list[str]:
    """The first `n` in a random order, so that fewer are among more."""
    if n > len(weak):
        raise Problem(f"split.weak_images: found {n}; there are {len(weak)} to choose from, and null takes all")
    return _shuffled(sorted(weak), seed, "weak images")[:n]


def per_class(shown: Mapping[str, Collection[int]], classes: Sequence[str], n: int, seed: int) -> list[list[str]]:
    """For each of the classes 1..L, `n` images that show it; no image stands for two classes.

    A choice is found whenever there is one: it is a matching of images to classes. Which of many, the seed decides, by
    a random order of each class's images.

    Raises:
        Problems: there are not enough images; it names the classes and the greatest `n` that works.
    """
    candidates = [
        _shuffled([image_id for image_id in sorted(shown) if index in shown[image_id]], seed, name)
        for index, name in enumerate(classes)
        if index > 0
    ]
    picked, stuck = _matched(candidates, n)
    if not stuck:
        return picked
    most = next(fewer for fewer in range(n - 1, -1, -1) if not _matched(candidates, fewer)[1])
    advice = f"set split.strong.images to at most {most}" if most else "choose S by split.strong.kind: list or all"
    raise Problems(
        f"split.strong.images: {n} images a class, each for one class only, are not there; {advice}, or add labels:",
        _shortages(candidates, classes[1:], n, stuck),
    )


def _shuffled(image_ids: list[str], seed: int, name: str) -> list[str]:
    rng = np.random.default_rng(derived_seed(seed, "split", name))
    return [image_ids[place] for place in rng.permutation(len(image_ids)).tolist()]


def _matched(candidates: Sequence[Sequence[str]], n: int) -> tuple[list[list[str]], list[int]]:
    """Images by class, and, where that is impossible, classes that have too few images between them.

    The scarcest class chooses first; one that finds its images taken makes others move over (augmenting paths).
    """
    owner: dict[str, int] = {}
    for wanting in sorted(range(len(candidates)), key=lambda index: (len(candidates[index]), index)):
        for _ in range(n):
            if stuck := _take_one(wanting, candidates, owner):
                return [], stuck
    picked: list[list[str]] = [[] for _ in candidates]
    for image_id, index in owner.items():
        picked[index].append(image_id)
    return picked, []


def _take_one(wanting: int, candidates: Sequence[Sequence[str]], owner: dict[str, int]) -> list[int]:
    """Give the class one more image along a shortest chain of moves.

    Returns:
        Nothing, or, where no chain ends at a free image, all the classes that were asked: their images are all theirs,
        and too few.
    """
    gives: dict[int, tuple[int, str]] = {}
    """By class: the class that would get one of its images, and the image."""
    asked = [wanting]
    for index in asked:
        for image_id in candidates[index]:
            if image_id not in owner:
                _move(index, image_id, wanting, gives, owner)
                return []
            if owner[image_id] not in asked:
                asked.append(owner[image_id])
                gives[owner[image_id]] = (index, image_id)
    return sorted(asked)


def _move(index: int, image_id: str, wanting: int, gives: Mapping[int, tuple[int, str]], owner: dict[str, int]) -> None:
    owner[image_id] = index
    while index != wanting:
        index, image_id = gives[index]
        owner[image_id] = index


def _shortages(candidates: Sequence[Sequence[str]], names: Sequence[str], n: int, stuck: Sequence[int]) -> list[str]:
    alone = [index for index, images in enumerate(candidates) if len(images) < n]
    problems = [f"{names[index]}: {len(candidates[index])} training images with labels show it" for index in alone]
    if not alone:
        together = len(set().union(*(candidates[index] for index in stuck)))
        problems.append(
            f"{', '.join(names[index] for index in stuck)}: {together} training images with labels show any of them, "
            f"and {len(stuck)} x {n} are needed"
        )
    return problems


def _listed(listed: Sequence[str], records: Mapping[str, Record], shown: Collection[str]) -> list[str]:
    problems = [f"'{line}' is listed {count} times" for line, count in Counter(listed).items() if count > 1]
    for image_id in dict.fromkeys(listed):
        if image_id not in records:
            problems.append(f"'{image_id}' is no image of the data set")
        elif records[image_id].split != "train":
            problems.append(f"'{image_id}' is a validation image, which is never trained on")
        elif image_id not in shown:
            problems.append(f"'{image_id}' has no labels")
    if not listed:
        problems.append("it is empty; write one image id a line")
    if problems:
        raise Problems("split.strong.file cannot be used; mend the file:", problems)
    return list(listed)


def counts(splits: Splits, records: Mapping[str, Record], classes: Sequence[str]) -> dict[str, object]:
    """How many images each set has, and of each class: strong ones whose labels show it, others whose tags name it."""
    strong = Counter(label for record in of(records, splits.strong) for label in {*(record.label_classes or ())})
    weak, val = (
        Counter(tag for record in of(records, ids) for tag in {*record.tags}) for ids in (splits.weak, splits.val)
    )
    return {
        "strong": len(splits.strong),
        "weak": len(splits.weak),
        "weak_without_mask": len({*splits.weak} - {*splits.strong}),
        "val": len(splits.val),
        "per_class": {
            name: {"strong": strong[index], "weak": weak[index], "val": val[index]}
            for index, name in enumerate(classes)
            if index > 0
        },
    }
