"""What the papers print for VOC 2012 val, to stand beside ours."""

from collections.abc import Iterable

from segcore.config.settings import Settings
from segcore.importers.voc import CLASSES

BY_MASKS = {
    ("decouplednet", "weak"): {"all": 67.5, 25: 62.1, 10: 57.4, 5: 53.1},
    ("decouplednet", "strong"): {"all": 67.5, 25: 50.3, 10: 41.7, 5: 32.7},
    ("deconvnet", "strong"): {"all": 67.1, 25: 38.6, 10: 21.5, 5: 15.3},
}
"""Mean IoU in per cent (Hong et al. 2015, table 1), by module, images of its classifier and masks per class;
DecoupledNet by tags of 10,582 images, DecoupledNet-Str and DeconvNet by masks only."""

BY_ROW = {"wssl": {"all": 67.6, 25: 54.2, 10: 38.9}, "wssl_small": {"all": 63.9, 25: 56.9, 10: 47.6}}
"""The same of rows that differ in their networks: WSSL by a large and a small field of view, after a CRF."""

BY_TAGS = {"ficklenet": 61.2, "dsrg": 59.0, "sec": 50.7, "wssl_tags": 38.2}
"""The same for VGG-16 on the tags of 10,582 images and no mask, by row (Lee et al. 2019; SEC: Kolesnikov and Lampert
2016; WSSL: Papandreou et al. 2015)."""


def is_voc(classes: Iterable[str]) -> bool:
    """Whether a data set has VOC's classes, background among them, in whatever order and layout."""
    return {*classes} == {*CLASSES}


def mean_iou(
    system: str, masks: int | str | None, by_tags: bool, settings: Settings, classes: Iterable[str]
) -> float | None:
    """The published number of a system of this supervision; None on other classes or where no paper has one."""
    if not is_voc(classes):
        return None
    images = "weak" if by_tags else "strong"
    module = settings.systems[system].module
    if not masks:
        return BY_TAGS.get(system)
    return BY_ROW.get(system, BY_MASKS.get((module, images), {})).get(masks)
