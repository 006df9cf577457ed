"""Which images are held back to measure on: a share of each tag, by a seed, copies of a picture on one side."""

from collections.abc import Mapping, Sequence

import numpy as np

from segcore.importers.duplicates import nearest
from segcore.seeds import derived_seed


def families(ids: Sequence[str], looks: Mapping[str, bytes | None], pixels: Mapping[str, str]) -> list[list[str]]:
    """Images that look alike or show the same pixels as one family, the others by themselves, in the order of ids."""
    first = {image_id: image_id for image_id in ids}

    def head(image_id: str) -> str:
        while first[image_id] != image_id:
            image_id = first[image_id]
        return image_id

    def join(one: str, other: str) -> None:
        a, b = sorted((head(one), head(other)))
        first[b] = a

    same: dict[str, str] = {}
    for image_id in ids:
        join(image_id, same.setdefault(pixels[image_id], image_id))
    hashed = [image_id for image_id in ids if looks[image_id] is not None]
    if hashed:
        codes = np.frombuffer(b"".join(looks[image_id] or b"" for image_id in hashed), np.uint64)
        codes = codes.reshape(len(hashed), -1)
        for later, earlier, *_ in nearest(codes, np.zeros(len(hashed), np.int64)).tolist():
            join(hashed[later], hashed[earlier])
    groups: dict[str, list[str]] = {}
    for image_id in ids:
        groups.setdefault(head(image_id), []).append(image_id)
    return list(groups.values())


def held_back(
    groups: Sequence[list[str]], tags: Mapping[str, frozenset[str]], share: float, seed: int
) -> frozenset[str]:
    """About `share` of the images, and of the images of each tag, whole groups only.

    The tag that lacks most of its share is served first, by the group that helps most and overshoots least (after
    Sechidis et al. 2011, "On the stratification of multi-label data"). Of any tag at least one group stays on the
    other side; a tag with two groups or more has one here.
    """
    if share <= 0:
        return frozenset()
    order = np.random.default_rng(derived_seed(seed, "validation")).permutation(len(groups)).tolist()
    shuffled = [groups[place] for place in order]
    names = sorted({tag for group in groups for image_id in group for tag in tags[image_id]})
    counts = np.array([[sum(tag in tags[i] for i in group) for tag in names] for group in shuffled], dtype=np.int64)
    counts = counts.reshape(len(shuffled), len(names))
    sizes = np.array([len(group) for group in shuffled], dtype=np.int64)
    owners = (counts > 0).sum(0)
    wanted = np.where(owners > 1, np.maximum(1, np.rint(share * counts.sum(0))), 0)
    total = max(1, round(share * int(sizes.sum()))) if len(shuffled) > 1 else 0
    taken = np.zeros(len(shuffled), dtype=bool)
    while True:
        lack = wanted - counts[taken].sum(0)
        free = ~taken & ~_last_of_a_tag(counts, taken)
        if not free.any():
            break
        if len(names) and lack.max() > 0:
            scarce = int(np.argmax(lack / np.maximum(wanted, 1)))
            able = free & (counts[:, scarce] > 0)
            if able.any():
                gains = (np.minimum(counts, np.maximum(lack, 0)) - np.maximum(counts - np.maximum(lack, 0), 0)).sum(1)
                taken[int(np.argmax(np.where(able, gains, np.iinfo(np.int64).min)))] = True
                continue
            wanted[scarce] = 0  # nobody is left who could serve it
            continue
        untagged = free & (counts.sum(1) == 0)
        if sizes[taken].sum() >= total or not untagged.any():
            break
        taken[int(np.argmax(untagged))] = True
    return frozenset(image_id for place in np.flatnonzero(taken).tolist() for image_id in shuffled[place])


def _last_of_a_tag(counts: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Groups without which some tag would have none on the other side."""
    left = (counts[~taken] > 0).sum(0)
    return ((counts > 0) & (left <= 1)).any(1)
