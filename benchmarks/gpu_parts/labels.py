"""Labels: extraction of localisation maps, the CRF of the boundary loss, the CRF of whole pictures."""

from contextlib import nullcontext
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from benchmarks import crf as crf_bench
from benchmarks.gpu_parts.measuring import Context, Figures, bar, fingerprint, seconds
from benchmarks.gpu_parts.steps import TAGS, Pictures, built, recipe, settings, steps_of
from segcore.config.classifiers import TrainedParams
from segcore.config.labels import Gradient, LabelsFromMaps
from segcore.localisation import crf, region_growing
from segcore.localisation.labeller import PseudoLabeller
from segcore.losses import boundary_loss, floored_softmax
from segcore.networks import classifiers
from segcore.networks.classifiers import Classifier
from segcore.processes import Runtime
from segcore.systems.dsrg import DSRG

BAR_EXTRACTION, BAR_BOUNDARY, BAR_DIFFERING = 1.3, 0.05, 0.001
TAGS_AN_IMAGE = 2
SHORT = 100
"""Pixels of a side of the picture that a toy refines, and that a CPU is compared on at stride 1."""


def extraction(context: Context) -> Figures:
    """The profile's 200 maps of each of two tags an image, merged, against the forward pass of the trunk.

    In float32, as the stage runs, and in bf16; with the gradient cue of the background, too, for which there is no bar.
    """
    labeller, with_cue, images, tags = _labellers(context)
    trunk = labeller.classifier.trunk
    figures: Figures = {"passes": labeller.params.passes, "images": len(images), "tags_an_image": TAGS_AN_IMAGE}
    repeats = 1 if context.toy else 5

    @torch.no_grad()
    def forward() -> Tensor:
        return trunk(images).top

    for name, precision in (("fp32", nullcontext()), ("bf16", Runtime("bf16").autocast())):
        with precision:
            plain = seconds(forward, context, repeats)
            ours = seconds(lambda: labeller([images], tags), context, repeats)
            cue = seconds(lambda: with_cue([images], tags), context, repeats)
        figures[name] = {
            "images_a_second": len(images) / ours,
            "trunk_alone": len(images) / plain,
            "times_the_trunk": ours / plain,
            "times_the_trunk_with_cue": cue / plain,
        }
    bars = {
        f"times the trunk, {name}": bar(figures[name]["times_the_trunk"], at_most=BAR_EXTRACTION)
        for name in ("fp32", "bf16")
    }
    return {"figures": figures, "bars": bars}


def extracted(context: Context) -> str:
    """A fingerprint of what the maps of the profile become, made from nothing."""
    _, labeller, images, tags = _labellers(context)
    found = labeller([images], tags)
    return fingerprint(
        [value for one in found for value in (one.maps.greatest, one.maps.mean, one.cue) if value is not None]
    )


def _labellers(context: Context) -> tuple[PseudoLabeller, PseudoLabeller, Tensor, list[tuple[int, ...]]]:
    chosen = settings(context.toy)
    entry = cast(LabelsFromMaps, chosen.pseudo_labels["ficklenet"])
    if context.toy:
        entry = entry.model_copy(update={"passes": 5})
    torch.manual_seed(0)
    of = cast(TrainedParams, chosen.classifiers["ficklenet"])
    classifier: Classifier = classifiers.build(of.backbone, of.head, len(TAGS)).eval()
    classifier.to(context.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    cue = entry.background
    assert isinstance(cue, Gradient)
    plain, with_cue = (PseudoLabeller(classifier, entry, how, 0, context.device) for how in (None, cue))
    size, count = entry.input_size, entry.batch_size
    images = Pictures(count, size, size).images.to(context.device).float()
    tags = [tuple(1 + (number + place) % len(TAGS) for place in range(TAGS_AN_IMAGE)) for number in range(count)]
    return plain, with_cue, images.contiguous(memory_format=torch.channels_last), tags


def boundary_crf(context: Context) -> Figures:
    """The boundary loss of DSRG with its CRF, 21 labels, as a share of DSRG's training step in bf16; and what the rest
    of that step does on the CPU, which grows the cues."""
    chosen = settings(context.toy)
    system = built(chosen, "dsrg")
    assert isinstance(system, DSRG)
    network, wanted = system.network, recipe(chosen, "dsrg")
    side = cast(Any, chosen.systems["dsrg"].training["network"])["input_size"]
    cells = (side - 1) // network.stride + 1
    samples = Pictures(2 * wanted.batch_size, side, cells)
    steps = steps_of(system, samples, wanted, Runtime("bf16"))
    repeats = 1 if context.toy else 5
    step = seconds(lambda: next(steps), context, repeats)
    steps.close()
    scores = torch.randn(wanted.batch_size, len(TAGS) + 1, cells, cells, device=context.device, requires_grad=True)
    images = samples.images[: wanted.batch_size].to(context.device).float()
    labels, tags = (values[: wanted.batch_size].to(context.device) for values in (samples.labels.long(), samples.tags))

    def boundary() -> Tensor:
        probabilities = floored_softmax(scores)
        refined = system.refined(probabilities.detach(), images)
        term = boundary_loss(probabilities, refined, system.cues.boundary_ratio)
        (term.total / term.weight).backward()
        return refined

    refined = boundary()
    growing = system.cues.growing
    assert growing is not None
    thresholds = growing.theta_foreground, growing.theta_background
    spent = seconds(boundary, context, repeats)
    grown = seconds(lambda: region_growing.grow_batch(labels, refined, tags, *thresholds), context, repeats)
    figures = {
        "batch_size": wanted.batch_size,
        "cells": cells,
        "ms_a_step": 1000 * step,
        "ms_boundary": 1000 * spent,
        "ms_growing_on_the_cpu": 1000 * grown,
        "share": spent / step,
        "share_of_growing": grown / step,
    }
    return {"figures": figures, "bars": {"share of the step": bar(spent / step, at_most=BAR_BOUNDARY)}}


def full_crf(context: Context) -> Figures:
    """A picture of 500x375 pixels and three labels, refined at its full size; `pydensecrf2` beside it, where it is
    there. Whether a GPU finds what a CPU does is seen on a part of it."""
    picture, probabilities = crf_bench.scene()
    if context.toy:
        picture, probabilities = _cut(picture, probabilities)
    theirs, lattice = crf_bench.lattice_of(picture, probabilities)
    figures: Figures = {
        "pixels": [picture.shape[1], picture.shape[0]],
        "pydensecrf2": "absent" if theirs is None else {"seconds": lattice},
    }
    on_device = probabilities.to(context.device)
    for stride in (1, 2, 4):
        params = crf_bench.PARAMS.model_copy(update={"stride": stride})
        crf.refine(on_device, picture, params)  # warms up
        refined, spent = crf_bench.timed(lambda params=params: crf.refine(on_device, picture, params), context.device)
        figures[f"stride_{stride}"] = {"seconds": spent}
        if theirs is not None:
            alike = (refined.argmax(0).cpu() == theirs).double().mean().item()
            figures[f"stride_{stride}"] |= {"times_as_fast": lattice / spent, "labels_alike": alike}
    small, part = _cut(picture, probabilities)
    ours, cpu = (crf.refine(values, small, crf_bench.PARAMS).cpu() for values in (part.to(context.device), part))
    figures["probabilities_off_a_cpu"] = (ours - cpu).abs().max().item()
    differing = (ours.argmax(0) != cpu.argmax(0)).double().mean().item()
    return {"figures": figures, "bars": {"labels other than a CPU's": bar(differing, at_most=BAR_DIFFERING)}}


def _cut(picture: np.ndarray, probabilities: Tensor) -> tuple[np.ndarray, Tensor]:
    return np.ascontiguousarray(picture[:SHORT, :SHORT]), probabilities[:, :SHORT, :SHORT].contiguous()
