"""Pseudo-labels: merging, the labeller and its rules, published cues, files, and how good they are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from segcore.config.classifiers import HiddenStochasticParams, StochasticParams
from segcore.config.labels import Constant, LabelsFromMaps, Mean
from segcore.config.refinements import NoRefinement
from segcore.config.section import Views
from segcore.data import pseudo_labels, saliency_maps
from segcore.data.pseudo_labels import CuesFile
from segcore.errors import Problem
from segcore.evaluation.quality import Quality
from segcore.localisation.deciding import Way, classes_at
from segcore.localisation.labeller import PseudoLabeller
from segcore.networks import classifiers, dropout
from segcore.networks.classifiers import Classifier
from segcore.networks.stochastic_head import StochasticHead
from tests.networks import N_TAGS, squares, tiny_classifier
from tests.test_classifiers import stochastic_classifier

CPU = torch.device("cpu")


GRADIENT, NOTHING = {"kind": "gradient", "fraction": 0.2}, {"kind": "none"}


def wanted(**changes: Any) -> LabelsFromMaps:
    values: dict[str, Any] = {
        "images": "weak", "source": "classifier", "input": "classifiers/any", "input_size": 65, "batch_size": 4,
        "selection": "stochastic", "rate": 0.8, "passes": 6, "form": "factorised", "theta": 0.35, "normalise": "map",
        "views": Views(scales=(1.0,), flip=False), "calibrate": None, "aggregation": {"kind": "union"},
        "background": GRADIENT, "refinement": {"kind": "none"},
    }  # fmt: skip
    return LabelsFromMaps.model_validate(values | changes)


def labelled(
    classifier: Classifier,
    params: LabelsFromMaps,
    seed: int,
    images: Tensor,
    tags: list[tuple[int, ...]],
    ids: list[str] | None = None,
) -> Tensor:
    """Labels at the cells, of images at one size."""
    labeller = PseudoLabeller(classifier, params, params.background, seed, CPU)
    way = Way(params.aggregation, params.theta, params.background, params.refinement)
    return torch.stack([found.labels_at_cells(way) for found in labeller([images], tags, ids or [])])


def test_foreground_wins_over_background_and_the_mean_decides_among_tags() -> None:
    members = torch.tensor([[[True, True, False, False, True]], [[True, True, True, False, False]]])
    means = torch.tensor([[[0.1, 0.5, 0.9, 0.9, 0.0]], [[0.2, 0.5, 0.1, 0.9, 0.9]]])
    cue = torch.tensor([[True, False, False, True, False]])
    assert classes_at(members, means, (3, 7), cue).tolist() == [[7, 3, 7, 0, 3]]
    assert classes_at(members, means, (3, 7)).tolist() == [[7, 3, 7, 255, 3]]
    assert classes_at(members[:0], means[:0], (), cue).tolist() == [[0, 255, 255, 0, 255]]


@pytest.mark.parametrize("kind", [GRADIENT, NOTHING], ids=["gradient", "none"])
@pytest.mark.parametrize("selection", ["stochastic", "general", "deterministic"])
def test_an_image_has_its_tags_and_the_background_only(kind: dict[str, Any], selection: str) -> None:
    tags = [(2, 5), (), (1,)]
    labels = labelled(
        stochastic_classifier(), wanted(background=kind, selection=selection), 3, squares(3, 65).images, tags
    )
    assert labels.dtype == torch.uint8
    assert labels.shape == (3, 9, 9)
    ground = {0} if kind == GRADIENT else set()
    for image, some in zip(labels, tags, strict=True):
        assert set(image.unique().tolist()) <= {*some, 255} | ground
    assert (labels[1] == 0).any() == (kind == GRADIENT), "no tags: the background cue only"
    assert torch.isin(labels[0], torch.tensor([2, 5])).any()


def test_labels_depend_on_neither_batches_nor_form_but_on_the_seed() -> None:
    classifier, images = stochastic_classifier(), squares(4, 65).images
    tags = [(1, 2), (3,), (), (5, 4, 1)]
    whole = labelled(classifier, wanted(), 3, images, tags)
    for first, last in ((3, 4), (0, 1), (1, 3)):
        part = labelled(classifier, wanted(), 3, images[first:last], tags[first:last])
        assert torch.equal(part, whole[first:last])
    expanded = labelled(classifier, wanted(form="expanded"), 3, images, tags)
    assert torch.equal(expanded, whole)
    assert not torch.equal(labelled(classifier, wanted(), 4, images, tags), whole)
    fixed = [labelled(classifier, wanted(selection="deterministic"), seed, images, tags) for seed in (3, 4)]
    assert torch.equal(*fixed)


def test_maps_that_are_all_zero_label_nothing() -> None:
    classifier = stochastic_classifier()
    assert isinstance(classifier.head, StochasticHead)
    with torch.no_grad():
        classifier.head.score.weight[1] = 0
        classifier.head.score.weight[2].abs_().neg_()  # features are positive, so that every map is cut off
    labels = labelled(classifier, wanted(background=NOTHING), 3, squares(2, 65).images, [(2,), (3,)])
    assert (labels == 255).all()


def test_saliency_maps_are_read_by_image_id(tmp_path: Path) -> None:
    for name, value in (("dark", 0), ("bright", 255)):
        Image.fromarray(np.full((20, 30), value, dtype=np.uint8)).save(saliency_maps.file_of(tmp_path, name))
    params = wanted(background={"kind": "saliency", "root": str(tmp_path), "threshold": 0.06})
    labels = labelled(stochastic_classifier(), params, 3, squares(2, 65).images, [(), ()], ["bright", "dark"])
    assert (labels[0] == 255).all()
    assert (labels[1] == 0).all()


def test_what_the_classifier_cannot_label_is_a_problem() -> None:
    with pytest.raises(Problem, match="fully connected head has no localisation maps.*kind: stochastic"):
        PseudoLabeller(tiny_classifier(), wanted(), None, 3, CPU)
    labeller = PseudoLabeller(stochastic_classifier(), wanted(), None, 3, CPU)
    for tag in (0, N_TAGS + 1):
        with pytest.raises(Problem, match=rf"knows the tags 1\.\.{N_TAGS}, but an image has {tag}"):
            labeller([squares(2, 65).images], [(1,), (2, tag)])


def test_a_trunk_whose_cells_lie_between_pixels_cannot_label() -> None:
    with pytest.raises(Problem, match=r"at backbone.stride 32 the cells of vgg16 lie between pixels.*8 or 16"):
        PseudoLabeller(stochastic_classifier("vgg16", stride=32), wanted(), None, 3, CPU)
    PseudoLabeller(stochastic_classifier("resnet18", stride=32), wanted(), None, 3, CPU)


def cues(path: Path, **changes: Any) -> Path:
    labels = np.full((2, 3, 4), 255, dtype=np.uint8)
    labels[1, 0] = [0, 1, 2, 255]
    arrays = {"image_ids": np.array(["a", "b"]), "labels": labels} | changes
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def test_published_cues_are_read_by_image_id(tmp_path: Path) -> None:
    file = CuesFile(cues(tmp_path / "cues.npz"))
    assert file.labels("b").tolist()[0] == [0, 1, 2, 255]
    with pytest.raises(Problem, match="has no cues of c"):
        file.labels("c")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": None}, r"lacks the arrays \['labels'\]; found \['image_ids'\]"),
        ({"labels": np.zeros((3, 3, 4), dtype=np.uint8)}, r"labels of shape \(3, 3, 4\); wanted n strings"),
        ({"labels": np.zeros((2, 12), dtype=np.uint8)}, r"labels of shape \(2, 12\)"),
        ({"labels": np.zeros((2, 3, 4), dtype=np.int64)}, "labels are int64; they must be uint8"),
        ({"image_ids": np.array([1, 2])}, r"image_ids of shape \(2,\) \(int64\)"),
        ({"image_ids": np.array(["a", "a"])}, "1 image_ids are there twice"),
        ({"image_ids": np.array(["a", None])}, "no readable .npz file of cues"),
    ],
)
def test_a_wrong_file_of_cues_is_a_problem(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(Problem, match=words):
        CuesFile(cues(tmp_path / "cues.npz", **changes))


@pytest.mark.parametrize("content", [None, b"", b"not a zip", b"PK\x03\x04 half of one"])
def test_a_file_that_is_none_is_a_problem(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "cues.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Problem, match=r"cues\.npz is no readable \.npz file of cues"):
        CuesFile(path)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(Problem, match=r"one\.npy is no readable"):
        CuesFile(tmp_path / "one.npy")


def test_the_folder_of_pseudo_labels(tmp_path: Path) -> None:
    assert pseudo_labels.cue_file(tmp_path, "a b") == tmp_path / "cues/a b.png"
    assert pseudo_labels.label_file(tmp_path, "a") == tmp_path / "labels/a.png"
    with pytest.raises(Problem, match="holds no pseudo-labels"):
        pseudo_labels.listed(tmp_path)
    (tmp_path / "images.txt").write_text("b\na\n")
    assert pseudo_labels.listed(tmp_path) == ["b", "a"]


def test_quality_of_ten_pixels_by_hand() -> None:
    truth = np.array([[0, 0, 0, 0, 1, 1, 1, 2, 255, 255]], dtype=np.uint8)
    pseudo = np.array([[0, 0, 1, 255, 1, 1, 255, 255, 2, 255]], dtype=np.uint8)
    quality = Quality(4)
    quality.update(truth[:, :5], pseudo[:, :5])
    rest = Quality(4)
    rest.update(truth[:, 5:], pseudo[:, 5:])
    summary = (quality + rest).summary(["background", "cat", "dog", "eel"])
    assert (quality + rest).counts.dtype == np.int64
    assert summary["coverage"] == 5 / 8
    assert summary["foreground_coverage"] == 3 / 8
    assert summary["per_class"] == {
        "background": {"coverage": 0.75, "precision": 1.0, "recall": 0.5, "iou": 0.5},
        "cat": {"coverage": 0.6667, "precision": 0.6667, "recall": 0.6667, "iou": 0.5},
        "dog": {"coverage": 0.0, "precision": None, "recall": 0.0, "iou": 0.0},
        "eel": {"coverage": None, "precision": None, "recall": None, "iou": None},
    }
    assert summary["precision"] == 0.8333
    assert summary["recall"] == 0.3889
    assert summary["mean_iou"] == 0.3333


def test_nothing_measured_is_none() -> None:
    summary = Quality(2).summary(["background", "cat"])
    assert summary["coverage"] is None
    assert summary["mean_iou"] is None
    assert summary["per_class"]["cat"]["iou"] is None


def test_labels_that_cannot_be_compared_are_an_error() -> None:
    labels = np.zeros((2, 2), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"\(2, 2\) but the prediction is \(2, 1\)"):
        Quality(2).update(labels, labels[:, :1])
    with pytest.raises(ValueError, match="the truth holds class 2"):
        Quality(2).update(labels + 2, labels)
    with pytest.raises(ValueError, match="the pseudo-label holds class 3"):
        Quality(2).update(labels, labels + 3)


def hidden_classifier() -> Classifier:
    """A random classifier whose windows stand on a hidden layer."""
    params = HiddenStochasticParams(
        kind="hidden_stochastic", kernel=5, selection="stochastic", rate=0.8, rescale=True, form="factorised", hidden=6
    )
    backbone = stochastic_classifier().backbone
    torch.manual_seed(0)
    classifier = classifiers.build(backbone, params, N_TAGS)
    assert isinstance(classifier.head, StochasticHead)
    nn.init.normal_(classifier.head.score.weight)
    return classifier.eval()


def test_a_hidden_layer_lies_between_the_trunk_and_the_windows() -> None:
    classifier, images = hidden_classifier(), squares(2, 65).images
    head = classifier.head
    assert isinstance(head, StochasticHead)
    assert head.hidden is not None
    top = classifier.trunk(images).top
    units = head.units(top)
    assert units.shape == (2, 6, 9, 9)
    torch.testing.assert_close(units, torch.relu(head.hidden(top)))
    params = StochasticParams(
        kind="stochastic", kernel=5, selection="stochastic", rate=0.8, rescale=True, form="factorised"
    )
    plain = StochasticHead(6, N_TAGS, params).eval()
    plain.score.load_state_dict(head.score.state_dict())
    torch.testing.assert_close(classifier(images).decision, plain(units))
    dropout.set_key(classifier.train(), 0, rank=0, world=1)
    classifier(images).decision.sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in head.parameters())


def test_maps_of_a_hidden_layer_are_the_same_in_every_form() -> None:
    classifier, images, tags = hidden_classifier(), squares(2, 65).images, [(1, 2), (3,)]
    ours, theirs = (labelled(classifier, wanted(form=form), 3, images, tags) for form in ("factorised", "expanded"))
    assert torch.equal(ours, theirs)
    assert len(ours.unique()) > 2


def test_maps_of_several_views_lie_upon_each_other() -> None:
    """A picture that is its own mirror image gives maps that are; the plain view's selections are those of one view."""
    classifier, tags = stochastic_classifier(), [(1, 2)]
    half = squares(1, 65).images
    images = torch.cat([half, half.flip(3)], dim=3)[..., 32:97]
    images = (images + images.flip(3)) / 2
    params = wanted(selection="deterministic", views=Views(scales=(1.0,), flip=True), aggregation={"kind": "mean"})
    (found,) = PseudoLabeller(classifier, params, None, 3, CPU)([images], tags)
    torch.testing.assert_close(found.maps.mean, found.maps.mean.flip(2), rtol=1e-4, atol=1e-5)
    several = wanted(views=Views(scales=(0.75, 1.0, 1.5), flip=False))
    labeller = PseudoLabeller(classifier, several, None, 3, CPU)
    assert labeller.sizes == (65, 49, 97)
    pictures = [torch.nn.functional.interpolate(images, size=(size, size)) for size in labeller.sizes]
    (merged,) = labeller(pictures, tags)
    (alone,) = PseudoLabeller(classifier, wanted(), None, 3, CPU)([images], tags)
    assert merged.maps.greatest.shape == alone.maps.greatest.shape == (2, 9, 9)
    assert (merged.maps.greatest >= alone.maps.greatest).all(), "a union over more views holds that of one"
    assert not torch.equal(merged.maps.mean, alone.maps.mean)


def test_a_constant_is_the_background_where_no_tag_exceeds_it() -> None:
    """And between it and theta nothing is known; without a quantile nothing is kept for one."""
    found = PseudoLabeller(stochastic_classifier(), wanted(), None, 3, CPU)([squares(2, 65).images], [(1, 2), ()])
    assert found[0].maps.histogram is None
    how = Constant(kind="constant", score=0.3)
    way = Way(Mean(kind="mean"), 0.6, how, NoRefinement(kind="none"))
    labels, greatest = found[0].labels_at_cells(way), found[0].maps.mean.amax(0)
    assert torch.equal(labels == 0, greatest <= 0.3)
    assert torch.equal(labels == 255, (greatest > 0.3) & (greatest <= 0.6))
    assert (found[1].labels_at_cells(way) == 0).all()
