"""The section `systems`: what every entry has. The rest is checked by the `Training` and `Prediction` of its module."""

from typing import Annotated, Any, Literal

from pydantic import Field

from segcore.config.labels import CRFParams
from segcore.config.section import Name, Section, Views

CROPS, MASKS, PSEUDO_LABELS = "crops", "masks", "pseudo_labels/"
"""What `labels` may name: the crop index, the masks of the strong images, a folder of pseudo-labels."""

BACKBONES, CLASSIFIERS, SEGMENTERS = "backbones", "classifiers", "segmenters"
"""What `start` may name."""


class SystemEntry(Section):
    """One entry of `systems`: two stages, `train_segmenter@<name>` and `evaluate@<name>`, and a row of the table."""

    module: Name
    """The file of `segcore/systems/`."""
    start: Annotated[str, Field(pattern=r"^(backbones|classifiers|segmenters)/[a-z][a-z0-9_]*$")]
    """A backbone with its initial weights, or the finished model that it is built around or goes on from."""
    images: Literal["strong", "weak"]
    """The list of the split that it learns from; a semi-supervised system names the strong images here."""
    labels: Annotated[str, Field(pattern=r"^(crops|masks|pseudo_labels/[a-z][a-z0-9_]*)$")]
    """Where its labels come from."""
    training: dict[str, Any]
    """What its model is a function of; a change trains it again."""
    prediction: dict[str, Any]
    """How a finished model is used; a change evaluates it again."""

    @property
    def start_kind(self) -> str:
        """`backbones`, `classifiers` or `segmenters`."""
        return self.start.split("/")[0]

    @property
    def start_name(self) -> str:
        """The name of that backbone, classifier or system."""
        return self.start.split("/")[1]


class Training(Section):
    """What the `training` of every system has."""

    recipe: Name
    """One of `recipes`."""
    regularisers: dict[Name, dict[str, Any]] = Field(default_factory=dict)
    """By the name of its file in `segcore/regularisers/`, each with its parameters. A key that does not apply does not
    exist, so this one may be absent: there are none then."""


class Prediction(Section):
    """What the `prediction` of every system has."""

    views: Views
    """One of `views`."""
    crf: CRFParams | None
    """One of `crfs`: also score the predictions that it refined, so that metrics stand with and without."""
