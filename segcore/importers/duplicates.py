"""One picture under two names: byte by byte, pixel by pixel, or to the eye.

What is trained on cannot measure what was learned, nor can a copy of it, so copies across the splits are refused unless
`dataset.duplicates` allows them; within a split they only weigh double, and a warning says so.

Files differ easily where pictures do not: a comment, another encoder, a web site that shrinks its pictures, a mirror.
Hence three questions: are the bytes the same, are the decoded pixels the same, and do the pictures look alike? The last
is asked of a hash of 256 bits: the signs of the 16x16 lowest frequencies (a DCT) of the picture in grey at 32x32. Noise
hardly moves these, and a mirror turns the signs of every other column round.

Two pictures look alike if at most `NEAR` bits differ. That was chosen on the 2,059 photographs of VOC 2012 that the
project is tried on (2.1 million pairs; 250 of them copied in each way) and on the 1,700 pictures of the embedded set:

| photograph and copy | bits that differ: median, 99 of 100, most |
| --- | --- |
| JPEG of quality 95 / 75 / 50 / 30 | 0, 2, 2 / 0, 3, 4 / 1, 4, 5 / 2, 6, 8 |
| scaled by 0.25 / 0.5 / 0.75 / 1.5 / 2 | 2, 8, 8 / 1, 4, 5 / 0, 2, 4 / 0, 2, 2 / 0, 1, 3 |
| mirrored, and JPEG of quality 50 | 1, 5, 5 |
| mirrored, scaled by 0.3, and JPEG of quality 30 | 5, 14, 20 |
| squeezed to 224x224 / made grey / brightened by a fifth | 0, 2, 4 / 0, 1, 2 / 8, 22, 25 |
| scaled by 0.25 without interpolation | 13, 27, 38 |
| 2 % cut off at the left and at the top, which is not sought | 34, 52, 64 |

| two pictures, as they are or one mirrored | fewest bits, fewest of 99 in 100, median |
| --- | --- |
| photographs | 79, 108, 127 |
| of the embedded set | 78, 106, 127 |

Frames of one film or of a fixed camera may well be nearer than that. They are copies for what is measured here; whoever
knows better allows them.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import cv2
import numpy as np
from jaxtyping import Int64, UInt8, UInt64

from segcore.data.manifest import Split
from segcore.importers import Entry, Finding

NEAR = 40
"""Bits that may differ between two pictures that look alike."""

BITS = 256
_SIDE = 16
_MIRROR = np.frombuffer(np.packbits(np.tile([False, True], BITS // 2)).tobytes(), np.uint64)
"""The bits of odd horizontal frequencies, which a mirror turns round."""

_TELLING = 1.0
"""Amplitude, in grey levels, from which a frequency says something of the picture and not of rounding."""

_PAIRS_AT_ONCE = 2**20

Kind = Literal["same_bytes", "same_pixels", "alike"]


def looks_of(picture: UInt8[np.ndarray, "H W 3"]) -> bytes | None:
    """The hash by which copies look alike: 32 bytes, or None where most of the picture is one plain colour.

    Any two plain pictures would look alike; of those only the bytes and pixels are compared.
    """
    # A fixed size first, so that a large picture is not held as floats; 32x32 at once would round too coarsely.
    reduced = cv2.resize(picture, (128, 128), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(reduced, cv2.COLOR_RGB2GRAY).astype(np.float32)
    waves = cv2.dct(cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA))[:_SIDE, :_SIDE]
    if np.count_nonzero(np.abs(waves) > _TELLING) < BITS // 2:
        return None
    return np.packbits(waves > 0).tobytes()


@dataclass(frozen=True)
class Copy:
    """A picture, and an earlier one that it repeats."""

    entry: Entry
    first: Entry
    kind: Kind
    differing: int
    """Bits of the hash, 0 to `NEAR`; 0 where bytes or pixels are the same."""
    mirrored: bool

    @property
    def is_across(self) -> bool:
        return self.entry.split != self.first.split

    def __str__(self) -> str:
        seen = {
            "same_bytes": "holds the same bytes as",
            "same_pixels": "shows the same pixels as",
            "alike": f"looks like the {'mirrored ' if self.mirrored else ''}picture",
        }[self.kind]
        text = f"{self.entry.image} ({self.entry.split}): {seen} {self.first.image} ({self.first.split})"
        return text + (f", in {BITS - self.differing} of {BITS} bits of their hashes" if self.kind == "alike" else "")


def judged(findings: Sequence[Finding], across: Literal["refuse", "allow"]) -> tuple[list[str], list[tuple[str, str]]]:
    """Problems, and warnings of a kind out of `WARNINGS`, for pictures that repeat an earlier one.

    Every picture is named once at most; `across` tells which of the two a copy across the splits is.
    """
    problems: list[str] = []
    warnings: list[tuple[str, str]] = []
    for copy in copies(findings):
        if copy.is_across and across == "refuse":
            look = "look at both, and " if copy.kind == "alike" else ""
            problems.append(
                f"{copy}; what is trained on cannot measure anything: {look}unlist one of them, "
                "or keep both by dataset.duplicates: allow"
            )
        else:
            warnings.append((f"{copy.kind}_{'across_splits' if copy.is_across else 'in_split'}", str(copy)))
    return problems, warnings


def copies(findings: Iterable[Finding]) -> Iterator[Copy]:
    """For each picture that repeats earlier ones, in order, that which it repeats most plainly.

    One of the other split comes first, then the same bytes, the same pixels, the fewest differing bits.
    """
    seen = [finding for finding in findings if finding.fingerprint is not None]
    alike = _alike(seen)
    firsts: dict[tuple[Kind, str, str], Entry] = {}
    """The first entry of a split with such bytes, or such pixels."""
    for place, finding in enumerate(seen):
        entry, fingerprint = finding.entry, finding.fingerprint
        assert fingerprint is not None
        found = [alike[place]] if place in alike else []
        exact: dict[Kind, str] = {"same_bytes": fingerprint.sha256, "same_pixels": fingerprint.pixels}
        for kind, value in exact.items():
            found += [
                Copy(entry, firsts[kind, split, value], kind, 0, False)
                for split in get_args(Split)
                if (kind, split, value) in firsts
            ]
            firsts.setdefault((kind, entry.split, value), entry)
        if found:
            yield min(found, key=lambda copy: (not copy.is_across, get_args(Kind).index(copy.kind)))


def _alike(findings: Sequence[Finding]) -> dict[int, Copy]:
    """By place, each picture that looks like an earlier one, with the nearest; one of the other split goes first."""
    hashes = {
        place: finding.fingerprint.looks
        for place, finding in enumerate(findings)
        if finding.fingerprint is not None and finding.fingerprint.looks is not None
    }
    places = list(hashes)
    looks = np.frombuffer(b"".join(hashes.values()), np.uint64).reshape(-1, _MIRROR.size)
    in_val = np.array([findings[place].entry.split == "val" for place in places], dtype=np.int64)
    return {
        places[later]: Copy(
            findings[places[later]].entry, findings[places[earlier]].entry, "alike", differing, bool(mirrored)
        )
        for later, earlier, differing, mirrored in nearest(looks, in_val).tolist()
    }


def nearest(looks: UInt64[np.ndarray, "N 4"], parts: Int64[np.ndarray, " N"]) -> Int64[np.ndarray, "M 4"]:
    """For each hash with an earlier one at most `NEAR` bits away: its place, the other's, bits that differ, mirrored.

    Earlier ones of other `parts` go first, then nearer ones. All pairs are compared, a block at a time: 20,000
    hashes take 2 s on one core and some 30 MB.
    """
    found = [np.empty((0, 4), np.int64)]
    rows = max(1, _PAIRS_AT_ONCE // max(1, len(looks)))
    for begin in range(0, len(looks), rows):
        end = min(begin + rows, len(looks))
        pairs = np.concatenate([_near(looks, begin, end, mirrored) for mirrored in (False, True)])
        later, earlier, differing, mirrored = pairs.T
        order = np.lexsort((earlier, mirrored, differing, parts[later] == parts[earlier], later))
        _, best = np.unique(later[order], return_index=True)
        found.append(pairs[order[best]])
    return np.concatenate(found)


def _near(looks: UInt64[np.ndarray, "N 4"], begin: int, end: int, mirrored: bool) -> Int64[np.ndarray, "M 4"]:
    """All pairs of a place in `begin`..`end` - 1 and an earlier one that look alike, as `nearest` gives them."""
    block = looks[begin:end] ^ _MIRROR if mirrored else looks[begin:end]
    # Half of the bits rule out nearly all pairs: unrelated ones differ in about half of those already.
    rough = np.bitwise_count(block[:, None, 0] ^ looks[None, :end, 0])
    rough += np.bitwise_count(block[:, None, 1] ^ looks[None, :end, 1])
    later, earlier = np.nonzero(rough <= NEAR)
    before = earlier < later + begin
    later, earlier = later[before], earlier[before]
    differing = np.bitwise_count(block[later] ^ looks[earlier]).sum(1, dtype=np.int64)
    near = differing <= NEAR
    columns = (later + begin, earlier, differing, np.full_like(later, mirrored))
    return np.stack(columns, axis=1)[near]
