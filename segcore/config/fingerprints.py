"""Short fingerprints of plans, and of all plans behind a result, by which one is known to be of today's parameters."""

from typing import Any

from segcore.config import plan as plans
from segcore.config.labels import LabelsFromFile
from segcore.config.settings import Settings
from segcore.config.systems import BACKBONES, CLASSIFIERS, CROPS, MASKS, PSEUDO_LABELS
from segcore.errors import Problem
from segcore.files import fingerprint


def of(plan: Any, *made_from: str) -> str:
    """That of a plan and of what it was made from."""
    return fingerprint([plans.plain(plan), *made_from], ())


def expected(settings: Settings, path: str, above: tuple[str, ...] = ()) -> str:
    """That of all plans behind what lies at `path` of a data set's folder, `segmenters/dsrg` say.

    Raises:
        Problem: it is made from itself.
    """
    if path in above:
        raise Problem(f"{path} is made from itself, by way of {', '.join(above)}")
    kind, _, name = path.partition("/")
    if kind == MASKS:
        return ""  # the lists of the split have a fingerprint of their own
    if kind == BACKBONES:
        return fingerprint(settings.backbones[name].model_dump(mode="json"), ())
    if kind == CROPS:
        return of(plans.make_crops(settings))
    if kind == CLASSIFIERS:
        return of(plans.train_classifier(settings, name))
    if path.startswith(PSEUDO_LABELS):
        labels = settings.pseudo_labels[name]
        behind = () if isinstance(labels, LabelsFromFile) else (expected(settings, labels.input, (*above, path)),)
        return of(plans.extract_pseudo_labels(settings, name), *behind)
    entry = settings.systems[name]
    behind = tuple(expected(settings, part, (*above, path)) for part in (entry.start, entry.labels))
    return of(plans.train_segmenter(settings, name), *behind)
