"""Copies are found however they were made; other pictures are none."""

import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from segcore.config import settings
from segcore.config.data import ShapesParams
from segcore.data.manifest import Split
from segcore.data.pictures import read_image
from segcore.importers import Entry, Finding, Fingerprint, duplicates, shapes
from segcore.importers.decoding import open_picture
from tests.devkit import PARAMS, real_voc

ROOT = Path("pictures")


def hash_of(picture: np.ndarray) -> np.ndarray:
    looks = duplicates.looks_of(picture)
    assert looks is not None
    return np.frombuffer(looks, np.uint64)


def apart(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.bitwise_count(one ^ other).sum())


def scene(seed: int, width: int = 320, height: int = 240) -> np.ndarray:
    """Blotches of every size: what photographs are to the hash."""
    rng = np.random.default_rng(seed)
    picture = np.full((height, width, 3), 128.0)
    for cells in (2, 4, 8, 16, 32):
        blotches = rng.normal(0, 240 / cells, (cells, cells, 3)).astype(np.float32)
        picture += cv2.resize(blotches, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(picture, 0, 255).astype(np.uint8)


def finding(name: str, split: str, *, sha256: str, pixels: str, looks: np.ndarray | None) -> Finding:
    entry = Entry(name, split, ROOT / f"{name}.jpg", None, ())  # type: ignore[arg-type]
    return Finding(entry, fingerprint=Fingerprint(sha256, pixels, looks.tobytes() if looks is not None else None))


def flipped(looks: np.ndarray, bits: int) -> np.ndarray:
    unpacked = np.unpackbits(looks.view(np.uint8))
    unpacked[np.random.default_rng(bits).permutation(duplicates.BITS)[:bits]] ^= 1
    return np.packbits(unpacked).view(np.uint64)


@pytest.mark.parametrize("seed", range(20))
def test_a_copy_looks_like_its_picture(seed: int) -> None:
    picture = scene(seed)
    _, coded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 30])
    decoded = cv2.imdecode(coded, cv2.IMREAD_COLOR)
    assert decoded is not None
    assert apart(hash_of(decoded), hash_of(picture)) <= duplicates.NEAR // 2
    for size in ((80, 60), (640, 480), (224, 224)):
        resized = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        assert apart(hash_of(resized), hash_of(picture)) <= duplicates.NEAR // 2


def test_a_mirror_turns_every_other_column_round() -> None:
    picture = scene(0)
    mirrored = hash_of(np.ascontiguousarray(picture[:, ::-1]))
    assert apart(mirrored, hash_of(picture)) > 90
    pairs = duplicates.nearest(np.stack([hash_of(picture), mirrored]), np.array([0, 1]))
    assert pairs.tolist() == [[1, 0, 0, 1]]


def test_other_scenes_look_otherwise() -> None:
    looks = np.stack([hash_of(scene(seed)) for seed in range(200)])
    assert duplicates.nearest(looks, np.zeros(len(looks), np.int64)).size == 0


def test_a_plain_picture_has_no_looks() -> None:
    rng = np.random.default_rng(0)
    assert duplicates.looks_of(np.full((40, 50, 3), 90, np.uint8)) is None
    assert duplicates.looks_of(rng.integers(90, 92, (400, 500, 3)).astype(np.uint8)) is None


def test_the_blocks_find_what_a_plain_comparison_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_PAIRS_AT_ONCE", 300)
    rng = np.random.default_rng(0)
    seeds = rng.integers(0, 2**64, (20, 4), dtype=np.uint64)
    looks = np.stack([flipped(seeds[rng.integers(20)], int(rng.integers(0, 60))) for _ in range(150)])
    looks[::7] ^= duplicates._MIRROR
    parts = rng.integers(0, 2, 150)
    expected = []
    for later in range(150):
        pairs = [
            (parts[earlier] == parts[later], apart(looks[later] ^ mirror, looks[earlier]), mirrored, earlier)
            for earlier in range(later)
            for mirrored, mirror in enumerate((np.uint64(0), duplicates._MIRROR))
        ]
        near = [pair for pair in pairs if pair[1] <= duplicates.NEAR]
        if near:
            _, differing, mirrored, earlier = min(near)
            expected.append([later, earlier, differing, mirrored])
    assert len(expected) > 50
    assert duplicates.nearest(looks, parts).tolist() == expected


def test_each_copy_is_named_once_by_what_is_plainest() -> None:
    looks = hash_of(scene(1))
    findings = [
        finding("a", "train", sha256="1", pixels="1", looks=looks),
        finding("b", "train", sha256="2", pixels="1", looks=looks),
        finding("c", "train", sha256="3", pixels="3", looks=flipped(looks, 9)),
        finding("d", "val", sha256="3", pixels="3", looks=flipped(looks, 9)),
        finding("e", "val", sha256="5", pixels="5", looks=flipped(looks, 9) ^ duplicates._MIRROR),
        finding("f", "val", sha256="6", pixels="6", looks=None),
        finding("g", "val", sha256="6", pixels="6", looks=None),
        Finding(Entry("h", "val", ROOT / "h.jpg", None, ())),
    ]
    found = [(copy.entry.image_id, copy.first.image_id, copy.kind) for copy in duplicates.copies(findings)]
    assert found == [
        ("b", "a", "same_pixels"),
        ("c", "a", "alike"),
        ("d", "c", "same_bytes"),
        ("e", "c", "alike"),
        ("g", "f", "same_bytes"),
    ]
    problems, warnings = duplicates.judged(findings, "refuse")
    assert problems == [
        "pictures/d.jpg (val): holds the same bytes as pictures/c.jpg (train); what is trained on cannot measure "
        "anything: unlist one of them, or keep both by dataset.duplicates: allow",
        "pictures/e.jpg (val): looks like the mirrored picture pictures/c.jpg (train), in 256 of 256 bits of their "
        "hashes; what is trained on cannot measure anything: look at both, and unlist one of them, or keep both by "
        "dataset.duplicates: allow",
    ]
    assert [kind for kind, _ in warnings] == ["same_pixels_in_split", "alike_in_split", "same_bytes_in_split"]
    problems, warnings = duplicates.judged(findings, "allow")
    assert not problems
    assert [kind for kind, _ in warnings][2:4] == ["same_bytes_across_splits", "alike_across_splits"]


def test_the_embedded_set_repeats_nothing(tmp_path: Path) -> None:
    params = settings.load(PARAMS).dataset
    assert isinstance(params, ShapesParams)
    params = params.model_copy(update={"train_images": 300, "val_images": 50})
    shapes.generate(tmp_path, params, seed=3)
    looks = np.stack([hash_of(read_image(path)) for path in sorted((tmp_path / "JPEGImages").iterdir())])
    assert duplicates.nearest(looks, np.zeros(len(looks), np.int64)).size == 0


def test_many_pictures_take_seconds() -> None:
    looks = np.random.default_rng(0).integers(0, 2**64, (10_000, 4), dtype=np.uint64)
    looks[-1] = looks[0]
    begin = time.process_time()
    assert duplicates.nearest(looks, np.zeros(len(looks), np.int64)).tolist() == [[9_999, 0, 0, 0]]
    assert time.process_time() - begin < 10, "a loop over all pairs in Python would take minutes"


def test_copies_among_real_photographs(tmp_path: Path) -> None:
    """Every tenth photograph, and a small mirrored copy of each."""
    findings = []
    for number, path in enumerate(sorted((real_voc() / "JPEGImages").glob("*.jpg"))[::10]):
        picture = read_image(path)
        small = cv2.resize(picture, None, fx=0.4, fy=0.4, interpolation=cv2.INTER_AREA)[:, ::-1]
        Image.fromarray(small).save(tmp_path / f"{number}.jpg", quality=50)
        pair: list[tuple[Split, Path]] = [("train", path), ("val", tmp_path / f"{number}.jpg")]
        for split, file in pair:
            one = Finding(Entry(path.stem, split, file, None, ()))
            opened = open_picture(file, "full", tmp_path / "converted", one)
            assert opened is not None
            one.fingerprint = opened.fingerprint
            findings.append(one)
    found = list(duplicates.copies(findings))
    assert len(found) == len(findings) // 2
    assert all(copy.mirrored and copy.is_across for copy in found)
    assert all(copy.entry.image_id == copy.first.image_id for copy in found)
