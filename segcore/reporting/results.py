"""What lies in a data set's folder, and in which state: of today's data and parameters, of others, or not there."""

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from segcore import made_of
from segcore.config import fingerprints, plan
from segcore.config.labels import LabelsEntry, learns_from_masks
from segcore.config.settings import Settings
from segcore.config.systems import CLASSIFIERS, CROPS, SEGMENTERS
from segcore.data.manifest import read_class_names, read_ids
from segcore.errors import Problem
from segcore.evaluation import per_image
from segcore.evaluation.per_image import TAGS_ALONE
from segcore.files import fingerprint
from segcore.reporting import kept, published
from segcore.reporting.chance import Scored
from segcore.reporting.comparison import Compared, Entry, columns, compared, notes
from segcore.reporting.reading import SCORES, read_json, read_scores
from segcore.reporting.states import RANKS, Part, Row
from segcore.reporting.supervision import supervision
from segcore.sources import Code

WHY = {
    "data_set": "other data",
    "trained_on": "other data",
    "images": "another split",
    "tags": "other tags",
    "training": "other training",
    "prediction": "other prediction",
}
"""What it means that a fingerprint differs."""

KINDS = {
    "results": ("evaluate", ("metrics.json", "confusion_counts.csv", per_image.FILE)),
    CLASSIFIERS: ("train_classifier", ("metrics.json",)),
    CROPS: ("make_crops", ("crops.json",)),
    "pseudo_labels": ("extract_pseudo_labels", ("quality.json",)),
}
"""By kind of result: the stage that makes it, and the files without which it is not there."""


class Results:
    """The results of today's parameters in the folder of their data set, `data`.

    Raises:
        Problem: no system has any.
    """

    def __init__(self, data: Path, settings: Settings) -> None:
        self.data = data
        self.settings = settings
        self._fingerprints: dict[tuple[str, ...], str] = {}
        self.rows = [self._row(number, system) for number, system in enumerate(settings.systems)]
        if all(row.state == "missing" for row in self.rows):
            raise Problem(f"{data} holds no results of any system yet", made_by=self.rows[0].part.stage)

    @cached_property
    def parts(self) -> list[Part]:
        """Everything that the systems of the parameters are made by, results last."""
        paths = [f"{CLASSIFIERS}/{name}" for name in self.settings.classifiers]
        paths += [CROPS] if any(entry.labels == CROPS for entry in self.settings.systems.values()) else []
        paths += [f"pseudo_labels/{name}" for name in self.settings.pseudo_labels]
        prepared = self._card("prepared", "dataset.json", "prepare", self._data_set is not None)
        split = self._card("split", "split.json", "split", self._is_split_current)
        return [prepared, split, *map(self._part, paths), *(row.part for row in self.rows)]

    @property
    def wanting(self) -> list[Part]:
        """What is missing or stale."""
        return [part for part in self.parts if part.state != "current"]

    @property
    def ranked(self) -> list[Row]:
        """The rows, best first over the seeds that all have; a stale one never stands before a current one."""
        return sorted(self.rows, key=lambda row: (RANKS.index(row.state), -self._mean(row)))

    def _mean(self, row: Row) -> float:
        found = self.compared.get(row.system)
        return found.shared_mean if found else row.metrics.get("mean_iou") or row.tag_precision or 0.0

    @cached_property
    def entries(self) -> list[Entry]:
        """The current rows, over all seeds of which a current result is kept."""
        found = []
        code = Code()
        for row in self.rows:
            if row.state == "current":
                others = [*kept.seeds_of(self.data, self.settings, row.system, self._data_set)]
                odd = [seed for seed, at in others if kept.other_code(at, self.settings, row.system, code)]
                own = (self.settings.seed, self.data / row.part.path)
                by_seed = scored_by_seed([own, *others], list(row.metrics["iou"]))
                found.append(Entry(row.system, by_seed, row.learned_from == "masks only", tuple(odd)))
        return found

    @cached_property
    def compared(self) -> dict[str, Compared]:
        """The current rows beside each other, by system; the best one first."""
        return compared(self.entries)

    @property
    def notes(self) -> list[str]:
        """What stands below the table."""
        rows = self.compared.items()
        return notes({name: row.apart for name, row in rows}, {name: row.other_code for name, row in rows})

    def current(self, kind: str) -> list[str]:
        """The names of the current results of a kind."""
        return [part.path.rpartition("/")[2] for part in self._of_kind(kind) if part.state == "current"]

    def _of_kind(self, kind: str) -> Iterator[Part]:
        return (part for part in self.parts if part.path.partition("/")[0] == kind)

    @property
    def tags_alone(self) -> bool:
        """Whether the validation images of current results have no masks, so that their tags alone are scored."""
        return any(row.state == "current" and row.metrics.get("measured") == TAGS_ALONE for row in self.rows)

    def table(self) -> pd.DataFrame:
        """A line a system; scores are fractions. One more column where tags alone are scored."""
        return pd.DataFrame(
            {"system": row.system, "state": row.state, "why": row.part.why}
            | {name: row.metrics.get(name) for name in SCORES}
            | {
                "images": row.metrics.get("images"),
                "masks_per_class": row.masks_per_class,
                "strong_images": row.strong_images,
                "tagged_images": row.tagged_images,
                "published": row.published,
            }
            | columns(self.compared.get(row.system))
            | ({"tag_mean_average_precision": row.tag_precision} if self.tags_alone else {})
            for row in self.rows
        ).astype(dict.fromkeys(("images", "strong_images", "tagged_images"), "Int64"))

    def _row(self, number: int, system: str) -> Row:
        part = self._part(f"results/{system}")
        if part.state == "missing":
            return Row(system, number, part, {})
        metrics = read_scores(self.data / part.path / "metrics.json")
        if part.state == "stale":
            return Row(system, number, part, metrics)
        masks, by_tags = supervision(system, self.settings)
        return Row(
            system=system,
            colour=number,
            part=part,
            metrics=metrics,
            masks_per_class=str(masks or "none"),
            strong_images=len(self._ids("strong")) if masks else 0,
            tagged_images=len(self._ids("weak")) if by_tags else 0,
            published=published.mean_iou(system, masks, by_tags, self.settings, self._classes),
        )

    @cached_property
    def _classes(self) -> list[str]:
        file = self.data / "prepared/classes.json"
        return read_class_names(file) if file.is_file() else []

    @property
    def is_voc(self) -> bool:
        """Whether the data set has VOC's classes, so that the papers' numbers may stand beside ours."""
        return published.is_voc(self._classes)

    def _part(self, path: str) -> Part:
        kind, _, name = path.partition("/")
        stage, files = KINDS[kind]
        stage = f"{stage}@{name}" if name else stage
        folder = self.data / path
        if not all((folder / file).is_file() for file in files):
            return Part(path, "missing", "not there", stage)
        found = made_of.read(folder)
        if not found:
            return Part(path, "stale", f"no {made_of.FILE} beside it", stage)
        wanted = self._results_of(name) if kind == "results" else self._made_of(path, name)
        why = dict.fromkeys(WHY[key] for key, value in wanted.items() if value is None or found.get(key) != value)
        return Part(path, "stale" if why else "current", ", ".join(why), stage)

    def _card(self, path: str, file: str, stage: str, is_current: bool) -> Part:
        if is_current:
            return Part(path, "current", "", stage)
        if (self.data / path / file).is_file():
            return Part(path, "stale", "other parameters", stage)
        return Part(path, "missing", "not there", stage)

    def _results_of(self, system: str) -> Mapping[str, str | None]:
        return {
            "data_set": self._data_set,
            "trained_on": self._data_set,
            "images": self._images("strong", "weak"),
            "tags": self._tags,
            "training": fingerprints.expected(self.settings, f"{SEGMENTERS}/{system}"),
            "prediction": fingerprints.of(plan.evaluate(self.settings, system)),
        }

    def _made_of(self, path: str, name: str) -> Mapping[str, str | None]:
        entry = (self.settings.classifiers if path.startswith(CLASSIFIERS) else self.settings.pseudo_labels).get(name)
        lists = ["strong"] if isinstance(entry, LabelsEntry) and learns_from_masks(entry) else []
        lists.append(entry.images if entry else "strong")
        wanted = {
            "data_set": self._data_set,
            "images": self._images(*lists),
            "training": fingerprints.expected(self.settings, path),
        }
        return wanted if path == CROPS else wanted | {"tags": self._tags}

    @cached_property
    def _data_set(self) -> str | None:
        """The fingerprint of the data set, if it was prepared by today's parameters."""
        return data_set_of(self.data, self.settings)

    @cached_property
    def _is_split_current(self) -> bool:
        return split_of(self.data, self.settings) is not None

    def _images(self, *lists: str) -> str | None:
        """The fingerprint of lists of the split, if it was made by today's parameters."""
        if not self._is_split_current:
            return None
        if lists not in self._fingerprints:  # once, as every row asks, and there may be a million ids
            ids = [self._ids(name) for name in lists]
            self._fingerprints[lists] = fingerprint(ids if len(ids) > 1 else ids[0], ())
        return self._fingerprints[lists]

    @cached_property
    def _tags(self) -> str | None:
        """The fingerprint of the tags that training sees, if they are of today's parameters."""
        split = self.data / "split"
        return made_of.tags(split) if self._is_split_current and (split / made_of.TAGS_FILE).is_file() else None

    def _ids(self, name: str) -> list[str]:
        path = self.data / f"split/{name}.txt"
        return read_ids(path, made_by="split") if path.is_file() else []


def scored_by_seed(folders: Iterable[tuple[int, Path]], names: list[str]) -> dict[int, Scored]:
    """The results in some folders, each with the seed that it was made by."""
    return {seed: Scored(per_image.read(folder, names), made_of.read(folder)["data_set"]) for seed, folder in folders}


def data_set_of(data: Path, settings: Settings) -> str | None:
    """The fingerprint of the data set in the folder `data`, if it was prepared by these settings."""
    card = read_json(data / "prepared/dataset.json")
    return card.get("fingerprint") if card.get("parameters") == fingerprints.of(plan.prepare(settings)) else None


def split_of(data: Path, settings: Settings) -> dict[str, Any] | None:
    """What `split.json` in the folder `data` tells of the split, if it was made by these settings."""
    card = read_json(data / "split" / kept.SPLIT)
    return card if card.get("parameters") == fingerprints.of(plan.split(settings)) else None
