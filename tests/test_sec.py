"""SEC: its three losses put together, what the CRF is given, cues from a folder."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from segcore import losses
from segcore.data.batches import Batch, SizedSamples
from segcore.data.pictures import write_labels
from segcore.errors import Problem, Problems
from segcore.localisation import crf
from segcore.networks.deeplab import LargeFov
from segcore.systems import sec
from segcore.systems._grid import CueSystem
from segcore.systems.contract import Inputs
from segcore.systems.sec import SEC
from tests.devkit import make_record
from tests.networks import CRF, batch_of, build, laid, params_of, system_of, tiny_classifier
from tests.test_transforms import record

STILL = {"network": {"dropout": 0.0}}


def system(**changes: Any) -> SEC:
    made = system_of("sec", **laid(STILL, changes)).train()
    assert isinstance(made, SEC)
    return made


def cue_folder(folder: Path, names: list[str], cells: int = 13) -> Path:
    """Pseudo-labels whose left half is of class 1, one column of the background, the rest unknown."""
    (folder / "cues").mkdir(parents=True)
    (folder / "images.txt").write_text("".join(f"{name}\n" for name in names))
    cues = np.full((cells, cells), 255, dtype=np.uint8)
    cues[:, : cells // 2] = 1
    cues[:, cells // 2] = 0
    for name in names:
        write_labels(folder / f"cues/{name}.png", cues)
    return folder


def inputs(folder: Path, labels: Path, strong: list[str], images: Literal["strong", "weak"] = "strong") -> Inputs:
    """Two pictures with masks and one without, all of them weak too; only strong ones keep their masks."""
    records = {name: record(folder, name=name) for name in ("one", "two")}
    records["bare"] = make_record("bare", folder / "one.png", None, 90, 60, (1,), "train")
    seen = {name: one if name in strong else replace(one, labels=None) for name, one in records.items()}
    return Inputs(seen, strong, ["bare", "one", "two"], images, labels, 5, None, 0)


class Watched:
    """Stands in for `crf.mean_field`: remembers what it is given and does as it does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.real = crf.mean_field
        self.calls: list[tuple[Tensor, Tensor, Any, float]] = []
        monkeypatch.setattr(crf, "mean_field", self)

    def __call__(self, unary: Tensor, images: Tensor, params: Any, scale: float) -> Tensor:
        self.calls.append((unary, images, params, scale))
        return self.real(unary, images, params, scale)


def test_the_losses_are_seed_expand_and_boundary_of_the_floored_probabilities() -> None:
    made = system()
    batch = batch_of(made, 3)
    terms = made.losses(batch)
    f = losses.floored_softmax(made.network(batch.images).detach())
    refined = crf.mean_field(-f.log(), batch.images[:, :, ::8, ::8], CRF, 8.0)
    expected = {
        "seed": losses.seed_loss(f, batch.labels),
        "expand": losses.expand_loss(f, batch.tags),
        "boundary": losses.boundary_loss(f, refined, None),
    }
    assert terms.keys() == expected.keys()
    for name, term in expected.items():
        assert terms[name].weight == term.weight == 3
        torch.testing.assert_close(terms[name].total, term.total)
    known = batch.labels[0] != 255
    chosen = f[0].permute(1, 2, 0)[known].gather(1, batch.labels[0][known][:, None])
    alone = losses.seed_loss(f[:1], batch.labels[:1])
    torch.testing.assert_close(alone.total, -chosen.log().mean())


@pytest.mark.parametrize("bounds", [None, [0.5, 2.0]])
def test_the_boundary_loss_has_the_bounds_of_the_entry(bounds: list[float] | None) -> None:
    made = system(cues={"boundary_ratio": bounds})
    batch, branch = batch_of(made, 3), made.network.branches[0]
    assert isinstance(branch, LargeFov)
    with torch.no_grad():
        branch.fc8.weight.mul_(40)  # so that some ratios lie beyond them
        f = losses.floored_softmax(made.network(batch.images))
        refined = crf.mean_field(-f.log(), batch.images[:, :, ::8, ::8], CRF, 8.0)
        got = made.losses(batch)["boundary"].total
    free, bounded = (losses.boundary_loss(f, refined, ratio).total for ratio in (None, (0.5, 2.0)))
    assert not torch.isclose(free, bounded)
    torch.testing.assert_close(got, free if bounds is None else bounded)


@pytest.mark.parametrize("bounds", [[2.0, 20.0], [20.0, 0.05], [0.05, 0.5]])
def test_bounds_that_no_agreement_lies_within_are_a_problem(bounds: list[float]) -> None:
    with pytest.raises(Problem, match="must be a bound below 1, then one above it, or null"):
        params_of("sec", cues={"boundary_ratio": bounds})


def test_processes_that_share_a_batch_sum_to_the_whole() -> None:
    made = system()
    batch = batch_of(made, 4)
    whole = made.losses(batch)
    parts = [made.losses(part(batch, torch.arange(rank, 4, 2))) for rank in (0, 1)]
    for name, term in whole.items():
        assert term.weight == sum(share[name].weight for share in parts)
        torch.testing.assert_close(term.total, parts[0][name].total + parts[1][name].total)


def part(batch: Batch, index: Tensor) -> Batch:
    """Some samples of a batch."""
    ids = tuple(batch.ids[i] for i in index.tolist())
    return Batch(ids, batch.images[index], batch.tags[index], batch.labels[index], batch.strong[index])


@pytest.mark.parametrize("unary", ["log", "probability"])
def test_the_crf_sees_the_grid_its_colours_and_its_scale(unary: str, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    made = system(cues={"unary": unary, "crf_scale": 12.0})
    batch = batch_of(made, 2, size=97)
    made.losses(batch)
    ((energies, images, params, scale),) = watched.calls
    f = losses.floored_softmax(made.network(batch.images).detach())
    torch.testing.assert_close(energies, -f.log() if unary == "log" else -f)
    corners = F.interpolate(batch.images, (13, 13), mode="bilinear", align_corners=True)
    torch.testing.assert_close(images, corners, rtol=1e-4, atol=1e-3)
    assert (params, scale) == (CRF, 12.0)
    assert not energies.requires_grad


def test_losses_are_in_full_precision_where_the_network_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    watched, made = Watched(monkeypatch), system()
    batch = batch_of(made, 2)
    with torch.autocast("cpu", torch.bfloat16):
        terms = made.losses(batch)
    assert all(term.total.dtype == torch.float32 for term in terms.values())
    assert watched.calls[0][0].dtype == torch.float32


def test_cues_of_another_grid_are_a_problem() -> None:
    made = system()
    batch = batch_of(made, 2)
    wider = Batch(batch.ids, batch.images, batch.tags, F.pad(batch.labels, (0, 1)), batch.strong)
    with pytest.raises(Problem, match=r"a grid of \(12, 12\) cells, the cues one of \(12, 13\)"):
        made.losses(wider)


def test_samples_are_all_images_that_the_folder_lists(tmp_path: Path) -> None:
    folder = cue_folder(tmp_path / "made", ["two", "bare"])
    samples = sec.samples(params_of("sec"), inputs(tmp_path, folder, ["one"]))
    assert isinstance(samples, SizedSamples)
    assert (len(samples), samples.input_size) == (2, 97)
    sample = samples.sample(0, 0)
    assert (sample.image_id, sample.strong) == ("two", False)
    assert sample.image.shape == (3, 97, 97)
    assert sample.labels.shape == (13, 13)
    assert sample.tags.tolist() == [1, 1, 1, 1, 0]


def test_an_image_without_tags_teaches_its_background(tmp_path: Path) -> None:
    """Nothing about it is special: its cues are background or nothing, and no tag is expanded."""
    made = build("sec", tiny_classifier(), **STILL).train()
    assert isinstance(made, CueSystem)
    batch = batch_of(made, 1)
    cues = torch.where(batch.labels == 0, 0, 255)
    terms = made.losses(Batch(batch.ids, batch.images, torch.zeros_like(batch.tags), cues, batch.strong))
    assert all(term.total.isfinite() for term in terms.values())
    nothing = Batch(batch.ids, batch.images, batch.tags, torch.full_like(cues, 255), batch.strong)
    assert made.losses(nothing)["seed"].total == 0


def test_folders_that_cannot_be_learned_from(tmp_path: Path) -> None:
    folder = cue_folder(tmp_path / "made", ["one", "two"])
    found = inputs(tmp_path, folder, ["one"])
    with pytest.raises(Problem, match=r"one\.png has 13 x 13 cells, the network 9 x 9 at input_size 65 and stride 8"):
        sec.samples(params_of("sec", network={"input_size": 65}), found)
    (folder / "cues/two.png").unlink()
    with pytest.raises(Problem, match=r"two\.png is missing"):
        sec.samples(params_of("sec"), found)
    (folder / "images.txt").write_text("one\nthree\n")
    with pytest.raises(Problem, match="three is not in the manifest"):
        sec.samples(params_of("sec"), found)
    with pytest.raises(Problem, match="holds no pseudo-labels"):
        sec.samples(params_of("sec"), inputs(tmp_path, tmp_path, ["one"]))


def test_the_crf_is_checked_as_a_part_of_the_entry() -> None:
    with pytest.raises(Problems) as caught:
        params_of("sec", cues={"crf": {"iterations": 0, "colour": 3}, "unary": "logits", "crf_scale": 0.0})
    text = str(caught.value)
    assert "systems.tested.training.cues.crf.iterations: found 0" in text
    assert "systems.tested.training.cues.crf.colour: unknown key" in text
    assert "systems.tested.training.cues.unary: found 'logits'" in text
    assert "systems.tested.training.cues.crf_scale: found 0" in text
