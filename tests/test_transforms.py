"""Training samples: a function of the seed, image and labels moved together, tags of the subset."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from segcore.data.batches import Sample
from segcore.data.geometry import padded_square, stretched_square
from segcore.data.manifest import Record
from segcore.data.pictures import read_labels, write_labels
from segcore.data.samples import CropSamples, CueSamples, LabelledImages, TaggedImages, tag_vector
from segcore.errors import Problem
from tests.devkit import make_record

COLOURS = np.array([[0, 0, 0], [240, 0, 0], [0, 240, 0], [0, 0, 240], [240, 240, 0]], dtype=np.uint8)


def record(folder: Path, width: int = 90, height: int = 60, name: str = "one") -> Record:
    """A picture whose colours are its labels: four classes, one of which is in one corner only."""
    labels = np.zeros((height, width), dtype=np.uint8)
    labels[5 : height // 2, 5 : width // 2] = 1
    labels[height // 2 : height - 5, width // 3 :] = 2
    labels[: height // 3, 2 * width // 3 :] = 3
    labels[:8, :8] = 4
    Image.fromarray(COLOURS[labels]).save(folder / f"{name}.png")
    write_labels(folder / f"{name}_labels.png", labels)
    paths = folder / f"{name}.png", folder / f"{name}_labels.png"
    return make_record(name, *paths, width, height, (1, 2, 3, 4), "train")


def crop_samples(folder: Path, warp: int = 72, input_size: int = 64) -> CropSamples:
    boxes = [(0, 0, 90, 60), (-20, 10, 60, 90), (40, 20, 80, 60)]
    rows = [("one", subset, *box) for subset, box in zip([[1], [2, 4], [1, 2, 3]], boxes, strict=True)]
    index = pd.DataFrame(rows, columns=["image_id", "labels", "x1", "y1", "x2", "y2"])
    return CropSamples(index, {"one": record(folder)}, 5, warp, input_size)


def test_tags_become_zeros_and_ones() -> None:
    assert tag_vector([1, 4], 5).tolist() == [1, 0, 0, 1, 0]
    assert tag_vector((5,), 5).tolist() == [0, 0, 0, 0, 1]
    assert tag_vector([], 3).tolist() == [0, 0, 0]


def test_a_sample_is_a_function_of_its_seed(tmp_path: Path) -> None:
    for samples in (crop_samples(tmp_path), TaggedImages([record(tmp_path)] * 3, 5, 70, 64)):
        assert len(samples) == 3
        first, again = samples.sample(1, 5), samples.sample(1, 5)
        assert torch.equal(first.image, again.image)
        assert torch.equal(first.labels, again.labels)
        others = [samples.sample(1, seed).image for seed in range(6, 26)]
        assert sum(torch.equal(first.image, other) for other in others) <= 2


def test_labels_move_with_the_image(tmp_path: Path) -> None:
    """The label of every pixel away from borders is the class of its colour, whatever the cut and the flip."""
    samples = crop_samples(tmp_path)
    left = 0
    for seed in range(12):
        for index in range(3):
            sample = samples.sample(index, seed)
            assert sample.image.shape == (3, 64, 64)
            assert sample.image.dtype == sample.labels.dtype == torch.uint8
            known = sample.labels != 255
            by_colour = nearest_colour(sample.image)
            agree = by_colour == sample.labels.long()
            assert agree[known].float().mean() > 0.93
            assert agree[known & uniform(sample.image)].all()
            assert not sample.image[:, ~known].any(), "unknown is what lies beyond the image, and black"
            if index == 1:
                left += bool((sample.labels[:10, 0] == 255).all())
    assert 2 <= left <= 10, "the part beyond the left border is, flipped, on the right half of the time"


def nearest_colour(image: torch.Tensor) -> torch.Tensor:
    distance = (image.permute(1, 2, 0)[:, :, None].float() - torch.from_numpy(COLOURS).float()).abs().sum(3)
    return distance.argmin(2)


def uniform(image: torch.Tensor) -> torch.Tensor:
    """Pixels of a pure colour: not blended with a neighbour by the warp."""
    distance = (image.permute(1, 2, 0)[:, :, None].float() - torch.from_numpy(COLOURS).float()).abs().sum(3)
    return distance.min(2).values == 0


def test_tags_of_a_crop_are_its_subset_and_labels_all_its_classes(tmp_path: Path) -> None:
    samples = crop_samples(tmp_path)
    assert samples.sample(0, 1).tags.tolist() == [1, 0, 0, 0, 0]
    assert samples.sample(1, 1).tags.tolist() == [0, 1, 0, 1, 0]
    assert samples.sample(2, 1).tags.tolist() == [1, 1, 1, 0, 0]
    assert {1, 2, 3} <= set(samples.sample(0, 1).labels.unique().tolist())
    assert samples.sample(0, 1).image_id == "one"


def test_a_crop_as_large_as_the_warp_is_not_cut(tmp_path: Path) -> None:
    samples = crop_samples(tmp_path, warp=64, input_size=64)
    images = {samples.sample(0, seed).image.numpy().tobytes() for seed in range(10)}
    assert len(images) == 2, "as it is, and mirrored"


def test_crops_without_labels_are_refused(tmp_path: Path) -> None:
    samples = crop_samples(tmp_path)
    samples.records = {"one": make_record("one", tmp_path / "one.png", None, 90, 60, (1,), "train")}
    with pytest.raises(ValueError, match="one has crops but no labels"):
        samples.sample(0, 0)


@pytest.mark.parametrize(("width", "height"), [(90, 60), (60, 90), (300, 40), (20, 31), (64, 64)])
def test_weak_samples_have_tags_and_no_labels(tmp_path: Path, width: int, height: int) -> None:
    samples = TaggedImages([record(tmp_path, width, height)], 6, resize=70, input_size=64)
    sample = samples.sample(0, 3)
    assert sample.image.shape == (3, 64, 64)
    assert sample.tags.tolist() == [1, 1, 1, 1, 0, 0]
    assert torch.equal(sample.labels, torch.full((64, 64), 255, dtype=torch.uint8))


def test_weak_samples_keep_the_aspect(tmp_path: Path) -> None:
    """A disc stays round: the short side is scaled, not both sides to a square."""
    y, x = np.mgrid[:60, :180]
    disc = ((x - 30) ** 2 + (y - 30) ** 2 < 25**2) | ((x - 90) ** 2 + (y - 30) ** 2 < 25**2)
    disc |= (x - 150) ** 2 + (y - 30) ** 2 < 25**2
    Image.fromarray(disc.astype(np.uint8) * 255).convert("RGB").save(tmp_path / "disc.png")
    alone = make_record("disc", tmp_path / "disc.png", None, 180, 60, (1,), "train")
    samples = TaggedImages([alone], 1, resize=120, input_size=120)
    high = [int((samples.sample(0, seed).image[0] > 127).any(1).sum()) for seed in range(8)]
    share = [float((samples.sample(0, seed).image[0] > 127).float().mean()) for seed in range(8)]
    assert all(abs(rows - 98) <= 2 for rows in high), "49 rows of 60, twice as large"
    assert all(abs(value - np.pi * 25**2 / 60**2) < 0.12 for value in share)


@pytest.mark.parametrize("size", [32, 96, 160])
def test_a_padded_square_is_black_to_the_right_or_below(size: int) -> None:
    picture = np.full((48, 96, 3), 200, dtype=np.uint8)
    wide, high = padded_square(picture, size), padded_square(picture.transpose(1, 0, 2), size)
    assert wide.shape == high.shape == (3, size, size)
    assert torch.equal(wide, high.transpose(1, 2))
    assert (wide[:, : size // 2 - 1] == 200).all()
    assert not wide[:, size // 2 + 1 :].any()
    assert (padded_square(picture[:48, :48], size) == 200).all()


def labelled(folder: Path, size: int = 65, width: int = 90, height: int = 60, **changes: Any) -> LabelledImages:
    one = record(folder, width, height)
    assert one.labels is not None
    return LabelledImages([one], [one.labels], 5, size, **changes)


def agrees(sample: Sample) -> bool:
    """Whether every known pixel of a pure colour has the label of that colour."""
    sure = uniform(sample.image) & (sample.labels != 255)
    return bool((nearest_colour(sample.image) == sample.labels.long())[sure].all()) and bool(sure.any())


def test_stretched_images_are_whole_and_mirrored_half_of_the_time(tmp_path: Path) -> None:
    samples = labelled(tmp_path)
    corners = []
    for seed in range(20):
        sample = samples.sample(0, seed)
        assert sample.image.shape == (3, 65, 65)
        assert sample.labels.shape == (65, 65)
        assert (sample.strong, sample.tags.tolist()) == (True, [1, 1, 1, 1, 0])
        assert agrees(sample)
        assert {0, 1, 2, 3, 4} == set(sample.labels.unique().tolist())
        assert torch.equal(sample.labels, samples.sample(0, seed).labels)
        corners.append(int(sample.labels[0, 0]))
    assert set(corners) == {3, 4}, "the corner of class 4 is left, or mirrored right"
    assert 5 <= corners.count(3) <= 15
    assert not labelled(tmp_path, strong=False).sample(0, 0).strong


@pytest.mark.parametrize("every", [8, 16])
def test_labels_may_be_kept_at_cells_alone(every: int, tmp_path: Path) -> None:
    for seed in range(4):
        whole, kept = labelled(tmp_path).sample(0, seed), labelled(tmp_path, every=every).sample(0, seed)
        assert torch.equal(kept.image, whole.image)
        assert torch.equal(kept.labels, whole.labels[::every, ::every])


@pytest.mark.parametrize(("scale", "known"), [(0.5, 45 * 30), (1.0, 65 * 60), (2.0, 65 * 65)])
def test_squares_are_cut_from_the_scaled_image(scale: float, known: int, tmp_path: Path) -> None:
    """90 x 60 pixels, scaled, behind a window of 65: beyond the image lie black and unknown."""
    samples = labelled(tmp_path, scales=(scale, scale))
    for seed in range(6):
        sample = samples.sample(0, seed)
        assert sample.image.shape == (3, 65, 65)
        unknown = sample.labels == 255
        assert int((~unknown).sum()) == known
        assert not sample.image[:, unknown].any()
        assert not unknown[:30].all(1).any(), "what is missing is below, and to the right before mirroring"
        assert agrees(sample)
    distinct = {samples.sample(0, seed).image.numpy().tobytes() for seed in range(10)}
    assert len(distinct) >= (2 if scale < 1 else 8)


def test_the_scale_is_drawn_from_its_range(tmp_path: Path) -> None:
    samples = labelled(tmp_path, size=129, scales=(0.5, 1.4))
    known = [int((samples.sample(0, seed).labels != 255).sum()) for seed in range(30)]
    assert 45 * 30 <= min(known) < 55 * 37
    assert 117 * 78 < max(known) <= 126 * 84


def test_labels_of_another_size_are_a_problem(tmp_path: Path) -> None:
    samples = labelled(tmp_path)
    assert isinstance(samples.labels[0], Path)
    write_labels(samples.labels[0], np.zeros((60, 80), dtype=np.uint8))
    with pytest.raises(Problem, match=r"one_labels.png has \(60, 80\) pixels .*, its image has \(60, 90\)"):
        samples.sample(0, 0)


def test_cues_are_mirrored_with_their_image(tmp_path: Path) -> None:
    """Cues made from the masks agree with the colours of the cells they lie at, mirrored or not."""
    one, cues = record(tmp_path), tmp_path / "cues.png"
    assert one.labels is not None
    whole = np.asarray(Image.fromarray(read_labels(one.labels)).resize((65, 65), Image.Resampling.NEAREST))
    write_labels(cues, whole[::8, ::8])
    samples = CueSamples([one], [cues], 5, 65, 9)
    lefts = []
    for seed in range(12):
        sample = samples.sample(0, seed)
        assert sample.image.shape == (3, 65, 65)
        assert sample.labels.shape == (9, 9)
        assert sample.tags.tolist() == [1, 1, 1, 1, 0]
        assert not sample.strong
        at_cells = sample.image[:, ::8, ::8]
        sure = uniform(at_cells)
        assert (nearest_colour(at_cells) == sample.labels.long())[sure].float().mean() > 0.9
        lefts.append(int(sample.labels[0, 0]))
    assert set(lefts) == {3, 4}
    with pytest.raises(Problem, match=r"cues.png has \(9, 9\) cells, the network \(13, 13\)"):
        CueSamples([one], [cues], 5, 97, 13).sample(0, 0)


@pytest.mark.parametrize(("height", "width"), [(48, 96), (33, 20), (1, 1)])
def test_a_stretched_square_shows_the_whole_image(height: int, width: int) -> None:
    picture = np.zeros((height, width, 3), dtype=np.uint8)
    picture[: height // 2] = 200
    square = stretched_square(picture, 40)
    assert square.shape == (3, 40, 40)
    assert (square[:, : 20 * (height > 1) - 2 * (height > 1)] == 200).all()
    assert not square[:, 23:].any()
