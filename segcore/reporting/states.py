"""A result and a row of the table of systems, each in its state: of today's parameters, of others, or missing."""

from dataclasses import dataclass
from typing import Any, Literal

from segcore.evaluation.per_image import TAGS_ALONE

State = Literal["current", "stale", "missing"]
RANKS: tuple[State, ...] = ("current", "stale", "missing")
"""The states, in the order in which their rows stand in a table."""


@dataclass(frozen=True)
class Part:
    """One result: where it lies in the data set's folder, its state and why, the stage that makes it."""

    path: str
    state: State
    why: str
    stage: str


@dataclass(frozen=True)
class Row:
    """A row of the table of systems. A stale one tells its scores only: today's parameters say nothing of it."""

    system: str
    colour: int
    """Its number in params.yaml: `charts.ink` gives it colour and stroke."""
    part: Part
    metrics: dict[str, Any]
    masks_per_class: str = ""
    strong_images: int | None = None
    tagged_images: int | None = None
    published: float | None = None

    @property
    def state(self) -> State:
        return self.part.state

    @property
    def tag_precision(self) -> float | None:
        """The mean average precision of tags, where validation images have no masks and nothing else was measured."""
        return self.metrics["tags"]["mean_average_precision"] if self.metrics.get("measured") == TAGS_ALONE else None

    @property
    def learned_from(self) -> str:
        """In words, what a current row saw: of such rows, one is compared with the other."""
        if self.strong_images and self.tagged_images:
            return "masks and tags"
        return "masks only" if self.strong_images else "tags only"
