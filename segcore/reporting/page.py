"""The results as one self-contained page."""

import base64
import io
import json
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup
from PIL import Image

from segcore.cli import provenance
from segcore.config.reading import PSEUDO_LABELS, Settings
from segcore.data.pictures import voc_palette
from segcore.errors import Problem, Problems
from segcore.reporting import charts

TEMPLATES = Path(__file__).parent / "templates"
SCORES = ("mean_iou", "mean_iou_foreground", "pixel_accuracy", "mean_accuracy", "boundary_f")
PACKAGES = ("torch", "torchvision", "timm", "numpy", "opencv-contrib-python-headless", "pillow", "dvc", "dvclive")
STAGES = (
    "prepare",
    "split",
    "train_classifier",
    "make_crops",
    "extract_pseudo_labels",
    "train_segmenter",
    "evaluate",
)
WIDEST = 1600
"""Pixels that an embedded picture is scaled down to."""

PUBLISHED = {
    ("decouplednet", "weak"): {"all": 67.5, 25: 62.1, 10: 57.4, 5: 53.1},
    ("decouplednet", "strong"): {"all": 67.5, 25: 50.3, 10: 41.7, 5: 32.7},
    ("deconvnet", "strong"): {"all": 67.1, 25: 38.6, 10: 21.5, 5: 15.3},
}
"""Mean IoU in per cent on VOC 2012 val (Hong et al. 2015, table 1), by module, images of its classifier and masks per
class; DecoupledNet by tags of 10,582 images, DecoupledNet-Str and DeconvNet by masks only."""

PUBLISHED_BY_TAGS = {"ficklenet": 61.2, "dsrg": 59.0, "sec": 50.7}
"""The same for VGG-16 on the tags of 10,582 images and no mask, by row (Lee et al. 2019; SEC: Kolesnikov and Lampert
2016)."""


@dataclass(frozen=True)
class Row:
    """A row of the table of systems, with what belongs to it further down the page."""

    system: str
    colour: int
    masks_per_class: str
    strong_images: int
    tagged_images: int
    published: float | None
    metrics: dict[str, Any]
    confusion: pd.DataFrame
    panels: list[Path]


def check_complete(data: Path, settings: Settings) -> None:
    """Every result that the page shows is there.

    Raises:
        Problems: what is missing and which stage makes it, for all of it.
    """
    makers = {
        "prepared/dataset.json": "prepare",
        "prepared/classes.json": "prepare",
        "split/split.json": "split",
        "crops/crops.json": "make_crops",
        "crops/figure.png": "make_crops",
    }
    makers |= {f"classifiers/{name}/metrics.json": f"train_classifier@{name}" for name in settings.classifiers}
    for name in settings.pseudo_labels:
        for file in ("quality.json", "figure.png"):
            makers[f"pseudo_labels/{name}/{file}"] = f"extract_pseudo_labels@{name}"
    for system in settings.systems:
        for name in ("metrics.json", "confusion_counts.csv", "panels"):
            makers[f"results/{system}/{name}"] = f"evaluate@{system}"
    missing = [
        f"{data / file}: run `dvc repro {stage}`" for file, stage in makers.items() if not (data / file).exists()
    ]
    if missing:
        raise Problems("the report needs results that are not there yet:", missing)


def row_of(data: Path, system: str, number: int, settings: Settings) -> Row:
    masks, by_tags = supervision(system, settings)
    published = None
    if settings.dataset.layout == "voc":
        images = "weak" if by_tags else "strong"
        module = settings.systems[system].module
        published = PUBLISHED.get((module, images), {}).get(masks) if masks else PUBLISHED_BY_TAGS.get(system)
    results = data / "results" / system
    return Row(
        system=system,
        colour=number % charts.COLOURS,
        masks_per_class=str(masks or "none"),
        strong_images=_count_lines(data / "split/strong.txt") if masks else 0,
        tagged_images=_count_lines(data / "split/weak.txt") if by_tags else 0,
        published=published,
        metrics=_read_json(results / "metrics.json"),
        confusion=pd.read_csv(results / "confusion_counts.csv", index_col="actual"),
        panels=sorted((results / "panels").glob("*.png")),
    )


def supervision(system: str, settings: Settings) -> tuple[int | str | None, bool]:
    """What a system learned from: masks (per class, `all` or `own list`; None where it saw none), and W's tags or not.

    Both are followed back through the models that it starts from and those that made its pseudo-labels.
    """
    split, behind = settings.split, [system]
    sees_masks = sees_tags = False
    for name in behind:  # grows on the way
        entry, raw = settings.systems[name], settings.raw["systems"][name]
        sees_masks |= not entry.labels.startswith(PSEUDO_LABELS) or bool(raw.get("full_weight"))
        fresh = entry.start_kind == "classifiers" and raw.get("encoder") == "backbone"
        makers = [] if fresh else [entry.start]
        if entry.labels.startswith(PSEUDO_LABELS):
            labels = settings.pseudo_labels[entry.labels.removeprefix(PSEUDO_LABELS)]
            sees_tags |= labels.images == "weak"
            makers += [labels.input] if labels.source != "cues_file" else []
        for _, kind, maker, _ in (path.split("/") for path in makers):
            if kind == "classifiers":
                sees_tags |= settings.classifiers[maker].images == "weak"
            elif maker not in behind:
                behind.append(maker)
    masks = {"per_class": split.strong_per_class, "all": "all", "list": "own list"}[split.strong]
    return masks if sees_masks else None, sees_tags


def table(rows: list[Row]) -> pd.DataFrame:
    """The table of systems; scores are fractions."""
    lines = [
        {"system": row.system}
        | {name: row.metrics[name] for name in SCORES}
        | {
            "images": row.metrics["images"],
            "masks_per_class": row.masks_per_class,
            "strong_images": row.strong_images,
            "tagged_images": row.tagged_images,
        }
        for row in rows
    ]
    return pd.DataFrame(lines)


def rendered(data: Path, rows: list[Row], settings: Settings, params_text: str, timings: dict[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "embedded": embedded, "words": lambda name: name.replace("_", " ")}
    names = _read_json(data / "prepared/classes.json")
    cards = {"Data set": "prepared/dataset.json", "Split": "split/split.json", "Crops": "crops/crops.json"}
    return environment.get_template("report.html.j2").render(
        rows=rows,
        ranked=sorted(rows, key=lambda row: -(row.metrics["mean_iou"] or 0)),
        system_colours={row.system: row.colour for row in rows},
        score_names=SCORES,
        settings=settings,
        class_names=names,
        class_colours=dict(zip(names, ("#" + bytes(rgb).hex() for rgb in voc_palette()), strict=False)),
        classifiers={name: _read_json(data / f"classifiers/{name}/metrics.json") for name in settings.classifiers},
        classifier_colours={name: number % charts.COLOURS for number, name in enumerate(settings.classifiers)},
        system_curves=_curve_charts(data / "segmenters", list(settings.systems)),
        classifier_curves=_curve_charts(data / "classifiers", list(settings.classifiers)),
        pseudo_labels={
            name: _read_json(data / f"pseudo_labels/{name}/quality.json") for name in settings.pseudo_labels
        },
        pseudo_label_figures={name: data / f"pseudo_labels/{name}/figure.png" for name in settings.pseudo_labels},
        crops_figure=data / "crops/figure.png",
        cards={title: _card(_read_json(data / file)) for title, file in cards.items()},
        params_text=params_text,
        timings=timings,
        stages=_expected_stages(settings),
        versions={name: metadata.version(name) for name in PACKAGES},
        machine=provenance.machine(),
        commit=provenance.commit(),
    )


def _curve_charts(folder: Path, names: list[str]) -> dict[str, Markup]:
    """A chart per metric that DVCLive recorded, over all runs that have it."""
    curves: dict[str, dict[str, charts.Curve]] = {}
    for name in names:
        root = folder / name / "training/plots/metrics"
        for file in sorted(root.rglob("*.tsv")):
            log = pd.read_csv(file, sep="\t")
            metric = file.relative_to(root).with_suffix("").as_posix()
            value = [column for column in log.columns if column not in ("step", "timestamp")][-1]
            step, values = log[["step", value]].to_numpy(np.float64).T
            curves.setdefault(metric, {})[name] = (step, values)
    colours = {name: number for number, name in enumerate(names)}
    # Our own SVG, whose every text charts.py escapes.
    return {metric: Markup(charts.line_chart(some, "step", metric, colours)) for metric, some in sorted(curves.items())}


@dataclass(frozen=True)
class Card:
    """Nested counts, laid out: single facts, and tables of what is counted by class or the like."""

    facts: list[tuple[str, str]]
    tables: list[tuple[str, pd.DataFrame]]


def _card(content: dict[str, Any]) -> Card:
    facts: list[tuple[str, str]] = []
    tables: list[tuple[str, pd.DataFrame]] = []
    for key, value in content.items():
        if isinstance(value, dict) and (len(value) > 6 or any(isinstance(inner, dict) for inner in value.values())):
            lines = [inner if isinstance(inner, dict) else {"count": inner} for inner in value.values()]
            tables.append((key, pd.json_normalize(lines, sep=" ").set_axis(list(value), axis="index")))
        elif isinstance(value, dict):
            named = (f"{name.replace('_', ' ')} {_text(inner)}" for name, inner in value.items())
            facts.append((key, ", ".join(named) or "none"))
        else:
            facts.append((key, _text(value)))
    return Card(facts, tables)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_text(inner) for inner in value) or "none"
    if value is None:
        return "none"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def read_timings(folder: Path) -> dict[str, Any]:
    """What `run.timed` recorded on this machine, by stage."""
    return {record["stage"]: record for record in map(_read_json, sorted(folder.glob("*.json")))}


def _expected_stages(settings: Settings) -> list[str]:
    systems = settings.systems
    variants = {
        "train_classifier": settings.classifiers,
        "extract_pseudo_labels": settings.pseudo_labels,
        "train_segmenter": systems,
        "evaluate": systems,
    }
    return [f"{stage}@{name}" if name else stage for stage in STAGES for name in variants.get(stage, [""])]


def embedded(path: Path) -> str:
    """The picture as a data URL, WebP, so that the page stands alone and stays small."""
    file = io.BytesIO()
    with Image.open(path) as image:
        picture = image.convert("RGB")
    picture.thumbnail((WIDEST, 10 * WIDEST))
    picture.save(file, format="WEBP", quality=88, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def _percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:.1f}"


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(), parse_constant=lambda _: None)
    except ValueError as error:
        raise Problem(f"{path} is not valid JSON ({error}); delete it and run the stage that writes it again") from None


def _count_lines(path: Path) -> int:
    return len(path.read_text().split()) if path.exists() else 0
