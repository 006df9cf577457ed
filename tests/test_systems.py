"""What every system keeps to: gradients, learning, prediction, statistics, parameters."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from segcore import systems
from segcore.config import settings
from segcore.config.classifiers import PooledParams, StochasticParams
from segcore.config.networks import BackboneParams
from segcore.config.systems import Prediction, SystemEntry
from segcore.data.batches import Batch, Moment, SizedSamples
from segcore.data.samples import INDEX
from segcore.errors import Problem, Problems
from segcore.evaluation import inference
from segcore.losses import Term
from segcore.networks import classifiers, dropout
from segcore.networks.classifiers import Classifier
from segcore.regularisers import self_regulation
from segcore.systems.contract import Inputs, Supervision, System
from segcore.training.optimisation import group_of
from tests.devkit import PARAMS, make_record
from tests.networks import (
    EDGES,
    N_TAGS,
    backbone,
    batch_of,
    build,
    classifier_for,
    entry,
    params_of,
    predicting,
    squares,
    system_of,
    total,
    views,
)

TRUNKS = ["vgg16", "timm/test_resnet"]
EVERY = [(module, trunk) for module in systems.names() for trunk in TRUNKS]


@pytest.mark.parametrize(("module", "trunk"), EVERY)
def test_every_trained_parameter_gets_a_finite_gradient(module: str, trunk: str) -> None:
    system = system_of(module, trunk).train()
    dropout.set_key(system, 0, rank=0, world=1)
    batch = batch_of(system, 3)
    terms = system.losses(batch)
    assert terms
    for name, term in terms.items():
        assert term.total.shape == term.weight.shape == ()
        assert math.isfinite(term.total.item()), name
    total(system, batch).backward()
    trained = {name: p for name, p in system.named_parameters() if p.requires_grad}
    assert trained
    without = [name for name, p in trained.items() if p.grad is None or not p.grad.isfinite().all()]
    assert not without
    frozen = [name for name, p in system.named_parameters() if not p.requires_grad and p.grad is not None]
    assert not frozen
    for prefix in system.pretrained:
        assert any(name.startswith(prefix) for name in trained), f"nothing is called {prefix}*"


@pytest.mark.parametrize(("module", "trunk"), EVERY)
def test_the_loss_falls_on_two_samples(module: str, trunk: str) -> None:
    system = system_of(module, trunk).train()
    batch = batch_of(system, 2)
    normalised = any(isinstance(part, nn.BatchNorm2d) for part in system.modules())
    rate = 0.02 if normalised else 0.002
    optimiser = torch.optim.Adam([p for p in system.parameters() if p.requires_grad], lr=rate)
    losses = []
    for step in range(20):
        dropout.set_key(system, step, rank=0, world=1)
        loss = total(system, batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0], losses


@pytest.mark.parametrize("module", systems.names())
def test_all_terms_are_there_in_every_step(module: str) -> None:
    """Those of a warm-up too, with gradients: processes wait for each other's in every step."""
    system = system_of(module, "timm/test_resnet").train()
    batch, names = batch_of(system, 2), []
    for step in (0, 1, 50, 99):
        dropout.set_key(system, step, rank=0, world=1)
        terms = system.losses(batch.at(Moment(step, 100)))
        names.append(list(terms))
        system.zero_grad(set_to_none=True)
        torch.stack([term.total for term in terms.values()]).sum().backward()
        assert not [name for name, p in system.named_parameters() if p.requires_grad and p.grad is None]
    assert names == [names[0]] * 4


def finished(module: str, trunk: str) -> System:
    """As the training stage leaves it: in eval mode, with statistics."""
    system = system_of(module, trunk).eval()
    system.finish([squares(3)])
    return system


@pytest.mark.parametrize(("module", "trunk"), EVERY)
def test_prediction_scores_every_class_of_every_pixel(module: str, trunk: str) -> None:
    """One image alone, in eval mode, gives what it gives among others; nothing carries a gradient."""
    system, batch = finished(module, trunk), squares(3)
    assert not any(part.training for part in system.modules())
    scores = system.predict(batch.images)
    assert scores.shape == (3, N_TAGS + 1, 96, 96)
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()
    assert not scores.requires_grad
    for number in range(3):
        alone = system.predict(batch.images[number : number + 1])
        torch.testing.assert_close(alone[0], scores[number], rtol=1e-4, atol=1e-4)
    assert system.predict(batch.images[:1, :, :, :64]).shape == (1, N_TAGS + 1, 96, 64)


@pytest.mark.parametrize(("module", "trunk"), EVERY)
def test_pictures_of_any_size_get_labels_of_their_size(module: str, trunk: str) -> None:
    system = finished(module, trunk)
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in [(37, 81), (96, 96), (130, 5), (1, 1)]]
    predicting(system, views={"scales": [1.0, 0.5], "flip": True})
    labels = inference.predict(system, pictures, 96, EDGES)
    assert [found.shape for found in labels] == [picture.shape[:2] for picture in pictures]
    assert all(found.dtype == np.uint8 and found.max() <= N_TAGS for found in labels)


@pytest.mark.parametrize("module", systems.names())
def test_pictures_together_are_scored_as_one_by_one(module: str) -> None:
    system = finished(module, "timm/test_resnet")
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in [(37, 81), (96, 96), (96, 50)]]
    assert_scored_alike(system, pictures)


def assert_scored_alike(system: System, pictures: list[np.ndarray]) -> list[Tensor]:
    together = [s.whole() for s in inference.score_maps(system, pictures, 96, views(flip=True), EDGES)]
    for picture, scores in zip(pictures, together, strict=True):
        (alone,) = inference.score_maps(system, [picture], 96, views(flip=True), EDGES)
        assert not scores.requires_grad
        torch.testing.assert_close(alone.whole(), scores, rtol=1e-4, atol=1e-4)
    return together


class Searching(System):
    """Its prediction moves a map of its own by gradient steps until the map tells the image, as DIS infers labels."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Conv2d(3, 8, 32, stride=32)
        self.decoder = nn.Conv2d(8, 3, 1)
        self.score = nn.Conv2d(8, N_TAGS + 1, 1)
        self.steps = steps

    def losses(self, batch: Batch) -> dict[str, Term]:
        raise AssertionError

    def misfit(self, found: Tensor, images: Tensor) -> Tensor:
        return (self.decoder(found) - nn.functional.avg_pool2d(images, 32)).square().mean((1, 2, 3))

    @torch.no_grad()
    def predict(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K H W"]:
        found = self.encoder(images / 255)
        for _ in range(self.steps):
            with torch.enable_grad():
                found.requires_grad_()
                (gradient,) = torch.autograd.grad(self.misfit(found, images / 255).sum(), found)
            # Each image's step is as long as its own map says.
            lengths = [x.flatten(1).norm(dim=1)[:, None, None, None] for x in (found, gradient)]
            found = found.detach() - 0.05 * lengths[0] / lengths[1] * gradient
        return nn.functional.interpolate(self.score(found), images.shape[2:])


def test_a_prediction_may_take_gradients() -> None:
    random = np.random.default_rng(1)
    pictures = [random.integers(0, 256, (96, 96, 3), dtype=np.uint8) for _ in range(3)]
    still, moved = (assert_scored_alike(Searching(steps).eval(), pictures) for steps in (0, 5))
    assert not torch.allclose(still[0], moved[0])
    system = Searching(5).eval()
    system.prediction = Prediction(views=views(), crf=None)
    assert len(inference.predict(system, pictures, 96, EDGES)) == 3
    assert all(parameter.grad is None for parameter in system.parameters())


@pytest.mark.parametrize("module", systems.names())
def test_weights_carry_all_that_scores_depend_on(module: str) -> None:
    """A system built anew around another classifier gives the same scores once it has the first one's weights."""
    system = finished(module, "vgg16")
    other = build(module, classifier_for(module, dropout=0.3, seed=7)).eval()
    images = squares(1).images
    assert not torch.equal(other.predict(images), system.predict(images))
    other.load_state_dict(system.state_dict())
    assert torch.equal(other.predict(images), system.predict(images))


@pytest.mark.parametrize("module", systems.names())
def test_a_batch_of_one_teaches(module: str) -> None:
    system = system_of(module, "timm/test_resnet").train()
    dropout.set_key(system, 0, rank=0, world=1)
    loss = total(system, batch_of(system, 1))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in system.parameters() if p.requires_grad)


@pytest.mark.parametrize("module", systems.names())
def test_a_system_says_how_its_scores_become_probabilities(module: str) -> None:
    system = finished(module, "vgg16")
    probabilities = system.probabilities(system.predict(squares(1).images))
    torch.testing.assert_close(probabilities.sum(1), torch.ones(1, 96, 96))
    assert (probabilities >= 0).all()


def stochastic_classifier() -> Classifier:
    """A classifier with a fine grid and no fully connected layers."""
    head = StochasticParams(
        kind="stochastic", kernel=3, selection="stochastic", rate=0.5, rescale=True, form="factorised"
    )
    return classifiers.build(backbone(stride=8), head, N_TAGS)


def pooled_classifier() -> Classifier:
    """One whose head has no grid at all."""
    head = PooledParams(kind="pooled", input_size=96, levels=1, pools=("mean", "max"), views=views())
    return classifiers.build(backbone(), head, N_TAGS)


STARTS = {
    "backbone": backbone(),
    "other backbone": backbone("resnet18"),
    "other head": stochastic_classifier(),
    "pooled head": pooled_classifier(),
}


def attempt(module: str, start: Classifier | BackboneParams) -> System | str:
    """A system, or why there is none."""
    try:
        return build(module, start)
    except Problem as problem:
        return str(problem)


@pytest.mark.parametrize("module", systems.names())
@pytest.mark.parametrize("start", STARTS)
def test_a_system_takes_any_start_or_says_which_it_wants(start: str, module: str) -> None:
    """A backbone, of whatever kind, or a classifier with whatever head."""
    made = attempt(module, STARTS[start])
    if isinstance(made, str):
        assert "set its `start` to " in made
        return
    system = made.train()
    dropout.set_key(system, 0, rank=0, world=1)
    total(system, batch_of(system, 2)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in system.parameters() if p.requires_grad)
    assert system.predict(squares(1).images).shape == (1, N_TAGS + 1, 96, 96)


@pytest.mark.parametrize("start", STARTS)
def test_decouplednet_goes_on_from_fully_connected_layers(start: str) -> None:
    heads = {"other head": "stochastic head", "pooled head": "pooled head"}
    found = heads.get(start, "starts from a backbone")
    with pytest.raises(Problem, match=f"{found}; .*head.kind: fully_connected"):
        build("decouplednet", STARTS[start])


def inputs(folder: Path, labels: Path, crops: bool = True) -> Inputs:
    """One strong image, one that is weak only, one to measure on."""
    records = {
        name: make_record(name, folder / f"{name}.png", None, 90, 60, (1,), "val" if name == "measured" else "train")
        for name in ("one", "other", "measured")
    }
    params = settings.load(PARAMS).crops if crops else None
    return Inputs(records, ["one"], ["one", "other"], "strong", labels, N_TAGS, params, 0)


@pytest.mark.parametrize("module", ["decouplednet", "deconvnet"])
def test_crops_come_from_the_index(module: str, tmp_path: Path) -> None:
    loaded, params, path = systems.load(module), params_of(module), tmp_path / INDEX
    given = inputs(tmp_path, tmp_path)
    rows: dict[str, Any] = {"image_id": ["one"], "labels": [[1]], "x1": [0], "y1": [0], "x2": [9]}
    with pytest.raises(Problem, match=r"holds no crop index; .*`labels`"):
        loaded.samples(params, given)
    path.write_text("no parquet")
    with pytest.raises(Problem, match="is no crop index"):
        loaded.samples(params, given)
    pd.DataFrame(rows).to_parquet(path)
    with pytest.raises(Problem, match=r"lacks the columns \['y2'\]"):
        loaded.samples(params, given)
    pd.DataFrame(rows | {"y2": [9]}).to_parquet(path)
    samples = loaded.samples(params, given)
    assert isinstance(samples, SizedSamples)
    assert given.crops is not None
    assert (len(samples), samples.input_size) == (1, given.crops.input_size)
    with pytest.raises(Problem, match="holds no crop index"):
        loaded.samples(params, inputs(tmp_path, tmp_path, crops=False))


FOREIGN = {
    "gone": "is not in the manifest",
    "measured": "is a validation image, which is never trained on",
    "other": "is none of the images that this system may learn from",
}


@pytest.mark.parametrize("module", ["decouplednet", "deconvnet"])
@pytest.mark.parametrize("image_id", FOREIGN)
def test_crops_of_other_than_strong_images_are_refused_by_name(image_id: str, module: str, tmp_path: Path) -> None:
    rows = {"image_id": ["one", image_id], "labels": [[1]] * 2, "x1": 0, "y1": 0, "x2": 9, "y2": 9}
    pd.DataFrame(rows).to_parquet(tmp_path / INDEX)
    with pytest.raises(Problem, match=f"{image_id} {FOREIGN[image_id]}; make these labels anew"):
        systems.load(module).samples(params_of(module), inputs(tmp_path, tmp_path))


@pytest.mark.parametrize("module", ["sec", "dsrg"])
@pytest.mark.parametrize("image_id", ["gone", "measured", "extra"])
def test_cues_of_images_in_no_list_are_refused_by_name(image_id: str, module: str, tmp_path: Path) -> None:
    found = FOREIGN.get(image_id, FOREIGN["other"])
    given = inputs(tmp_path, tmp_path, crops=False)
    given = replace(given, records={**given.records, "extra": given.records["one"]})
    (tmp_path / "images.txt").write_text(f"one\n{image_id}\n")
    with pytest.raises(Problem, match=f"{image_id} {found}"):
        systems.load(module).samples(params_of(module), given)


@pytest.mark.parametrize("module", ["decouplednet", "deconvnet"])
def test_a_scale_that_leaves_too_small_a_map_is_a_problem(module: str) -> None:
    picture = np.zeros((50, 50, 3), dtype=np.uint8)
    with pytest.raises(Problem, match=r"scales: 0.25 of 96 .* 32 pixels.*at least 64"):
        inference.predict(predicting(system_of(module), views={"scales": [1.0, 0.25]}), [picture], 96, EDGES)


@pytest.mark.parametrize("module", systems.names())
def test_a_module_says_what_it_learns_from(module: str) -> None:
    loaded, smallest = systems.load(module), entry(module)
    found = loaded.supervision(params_of(module), smallest["labels"])
    assert isinstance(found, Supervision)
    assert found.masks or found.tags
    assert system_of(module).params == params_of(module)


def required(training: Any) -> list[str]:
    """The keys that every entry has; one that does not apply may be absent, such as `regularisers`."""
    return [name for name, field in training.model_fields.items() if field.is_required()]


@pytest.mark.parametrize("module", systems.names())
def test_the_smallest_entry_leaves_nothing_out(module: str) -> None:
    loaded, smallest = systems.load(module), entry(module)
    assert smallest["module"] == module
    assert set(smallest) == set(SystemEntry.model_fields)
    assert set(smallest["training"]) == {*required(loaded.Training)}, "others may be absent"
    assert set(smallest["prediction"]) == set(loaded.Prediction.model_fields)


TAGGED = {"tagged_images": True, "regularisers": {"self_regulation": self_regulation.smallest()}}
"""A DeepLab that learns from tags, too."""


def test_what_entries_learn_from() -> None:
    cases: list[tuple[str, dict[str, Any], str, Supervision]] = [
        ("decouplednet", {}, "crops", Supervision(masks=True, tags=False)),
        ("deconvnet", {}, "crops", Supervision(masks=True, tags=False)),
        ("deeplab", {}, "masks", Supervision(masks=True, tags=False)),
        ("deeplab", {}, "pseudo_labels/mine", Supervision(masks=False, tags=False)),
        ("deeplab", TAGGED, "masks", Supervision(masks=True, tags=True)),
        ("sec", {}, "pseudo_labels/mine", Supervision(masks=False, tags=True)),
        ("dsrg", {}, "pseudo_labels/mine", Supervision(masks=True, tags=True)),
        ("dsrg", {"full_weight": 0.0}, "pseudo_labels/mine", Supervision(masks=False, tags=True)),
        ("wssl", {}, "masks", Supervision(masks=True, tags=True)),
        ("wssl", {"strong_weight": 0.0}, "masks", Supervision(masks=False, tags=True)),
        ("dis", {}, "masks", Supervision(masks=True, tags=True)),
        ("swsss", {}, "masks", Supervision(masks=True, tags=True)),
        ("mean_teacher", {}, "masks", Supervision(masks=True, tags=True)),
        ("prototypes", {}, "masks", Supervision(masks=True, tags=True)),
        ("dis", {"weak_update": None}, "masks", Supervision(masks=True, tags=False)),
    ]
    for module, changes, labels, expected in cases:
        found = systems.load(module).supervision(params_of(module, **changes), labels)
        assert found == expected, (module, changes, labels)


def checked(**entries: dict[str, Any]) -> None:
    """Check entries as a stage does."""
    systems.check({name: SystemEntry.model_validate(content) for name, content in entries.items()})


@pytest.mark.parametrize("module", systems.names())
def test_parameters_are_checked(module: str) -> None:
    loaded, mine = systems.load(module), entry(module)
    checked(mine=mine)
    own = required(loaded.Training)[-1]
    odd = own[:-2] + own[:-3:-1]
    yours = entry(module, training={odd: 0.5, "recipe": 3}, prediction={"views": "many", "viewz": 1})
    theirs = entry(module)
    del theirs["prediction"]["crf"]
    with pytest.raises(Problems) as caught:
        checked(mine=mine, yours=yours, theirs=theirs)
    text = str(caught.value)
    assert f"systems.yours.training.{odd}: unknown key" in text
    assert f"did you mean '{own}'?" in text
    assert "systems.yours.training.recipe: found 3" in text
    assert "systems.yours.prediction.views: found 'many'" in text
    assert "systems.yours.prediction.viewz: unknown key" in text
    assert "systems.theirs.prediction.crf: this key is missing" in text
    assert "mine" not in text
    for part in (loaded.Training, loaded.Prediction):
        assert part.model_config["extra"] == "forbid"


def test_an_unknown_system_is_a_problem_that_names_those_there_are() -> None:
    for ask in (lambda: systems.load("fickelnet"), lambda: checked(a=entry("dsrg") | {"module": "fickelnet"})):
        with pytest.raises(Problem) as caught:
            ask()
        assert "'fickelnet'" in str(caught.value)
        assert ", ".join(systems.names()) in str(caught.value)


def remember(seen: list[Tensor], _: nn.Module, inputs: tuple[Tensor]) -> None:
    seen.append(inputs[0].detach().double())


@pytest.mark.parametrize("module", ["decouplednet", "deconvnet"])
def test_statistics_are_means_over_batches_of_mean_and_unbiased_variance(module: str) -> None:
    system = system_of(module)
    batches = [squares(count, seed=count) for count in (2, 3, 5)]
    norms = {name: m for name, m in system.named_modules() if isinstance(m, nn.BatchNorm2d)}
    seen: dict[str, list[Tensor]] = {name: [] for name in norms}
    for name, norm in norms.items():
        norm.register_forward_pre_hook(partial(remember, seen[name]))
        nn.init.constant_(norm.running_mean, 17.0)  # type: ignore[arg-type]
    system.finish(iter(batches))
    for name, norm in norms.items():
        inputs = seen[name]
        assert len(inputs) == 3
        mean = torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0)
        variance = torch.stack([x.transpose(0, 1).flatten(1).var(1, correction=1) for x in inputs]).mean(0)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        torch.testing.assert_close(norm.running_mean.double(), mean, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(norm.running_var.double(), variance, rtol=1e-4, atol=1e-9)
        assert norm.momentum == 0.1, "later training goes on as before"
    assert system.finishing_batches() == (2, 4)


@pytest.mark.parametrize(("module", "trunk"), EVERY)
def test_every_parameter_is_in_one_group_at_most(module: str, trunk: str) -> None:
    system = system_of(module, trunk)
    found = group_of(system)
    assert found.keys() == dict(system.named_parameters()).keys()
    assert {*system.groups} <= {*found.values()} <= {None, "pretrained", *system.groups}
    assert ("pretrained" in found.values()) == bool(system.pretrained)
