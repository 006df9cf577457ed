"""The results as one self-contained page."""

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from segcore.config.settings import Settings
from segcore.data.pictures import BROKEN, opened, voc_palette
from segcore.errors import Problem
from segcore.files import fingerprint
from segcore.reporting import charts, comparison, findings, panels
from segcore.reporting.earlier import Earlier
from segcore.reporting.gallery import Gallery, gallery
from segcore.reporting.reading import AGAIN, SCORES, read_counts, read_curve, read_json
from segcore.reporting.results import Results

TEMPLATES = Path(__file__).parent / "templates"
STAGES = (
    "prepare",
    "split",
    "train_classifier",
    "make_crops",
    "extract_pseudo_labels",
    "train_segmenter",
    "evaluate",
)
WATCHED = "watched/"
"""Before the names of curves that are watched and not minimised; see `training.fit`."""
WIDEST = 1600
"""Pixels that an embedded picture is scaled down to."""
ERROR_COLOURS = {name: "#" + bytes(rgb).hex() for name, rgb in panels.ERRORS.items()}


@dataclass(frozen=True)
class Run:
    """Where and how a page was made, and what is known of the times of its stages."""

    machine: str
    commit: str
    versions: dict[str, str]
    timings: dict[str, dict[str, Any]]
    looks: dict[str, charts.Curve] = field(default_factory=dict)
    """By system: mIoU on some validation images on the way, where trainings on this machine were looked at."""


def mark(results: Results) -> str:
    """By this a page tells of which results and parameters it is."""
    return fingerprint([results.table().to_csv(index=False), results.settings.given], ())


def rendered(results: Results, params_text: str, run: Run, earlier: Earlier | None = None) -> str:
    """The page. Its pictures, curves and scores by class are those of current results only; with `earlier`, it also
    tells what changed since another commit."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "embedded": embedded, "words": lambda name: name.replace("_", " ")}
    environment.filters |= {"told": comparison.told, "ink": charts.ink}
    data, settings = results.data, results.settings
    shown = [row for row in results.ranked if row.state == "current"]
    counts = {row.system: _confusion(data / row.part.path) for row in shown}
    names = [str(name) for name in counts[shown[0].system].index] if shown else []
    classifiers, pseudo_labels = results.current("classifiers"), results.current("pseudo_labels")
    class_colours = ["#" + bytes(rgb).hex() for rgb in voc_palette()[: len(names)]]
    compared = shown and not results.tags_alone  # without masks there is nothing to lay predictions beside
    pictures = gallery(data, {row.system: data / row.part.path for row in shown}, names) if compared else None
    colours = {name: number for number, name in enumerate(settings.classifiers)}
    cards = {"Data set": "prepared/dataset.json", "Split": "split/split.json", "Crops": "crops/crops.json"}
    cards = {title: file for title, file in cards.items() if results.current(file.partition("/")[0])}
    crops_figure = data / "crops/figure.png"
    content = {
        "mark": mark(results),
        "ranked": shown,
        "winner": findings.winner(shown),
        "warnings": [*findings.warnings(shown)],
        "finds_nothing": findings.finds_nothing,
        "groups": findings.groups(shown, names),
        "earlier": earlier,
        "tabled": [row for row in results.ranked if row.state != "missing"],
        "wanting": results.wanting,
        "compared": results.compared,
        "tags_alone": results.tags_alone,
        "note": " ".join(results.notes),
        "is_voc": results.is_voc,
        "confusions": counts,
        "gallery": pictures,
        "gallery_data": _gallery_data(pictures, names, class_colours),
        "error_colours": ERROR_COLOURS,
        "system_colours": {row.system: row.colour for row in results.rows if row in shown},
        "score_names": SCORES,
        "settings": settings,
        "class_names": names,
        "class_colours": dict(zip(names, class_colours, strict=True)),
        "classifiers": {name: read_json(data / f"classifiers/{name}/metrics.json") for name in classifiers},
        "classifier_colours": {name: colours[name] for name in classifiers},
        "system_curves": _curve_charts(
            data / "segmenters", {row.system: row.colour for row in results.rows if row in shown}
        ),
        "looks": _look_chart(run.looks, {row.system: row.colour for row in results.rows if row in shown}),
        "watched": _watched(data / "segmenters", [row.system for row in shown]),
        "classifier_curves": _curve_charts(data / "classifiers", {name: colours[name] for name in classifiers}),
        "pseudo_labels": {name: read_json(data / f"pseudo_labels/{name}/quality.json") for name in pseudo_labels},
        "pseudo_label_figures": _there({name: data / f"pseudo_labels/{name}/figure.png" for name in pseudo_labels}),
        "crops_figure": crops_figure if results.current("crops") and crops_figure.is_file() else None,
        "cards": {title: _card(read_json(data / file)) for title, file in cards.items()},
        "params_text": params_text,
        "stages": _expected_stages(settings),
        "run": run,
    }
    try:
        return environment.get_template("report.html.j2").render(content)
    except (jinja2.UndefinedError, TypeError, ValueError, AttributeError) as error:
        read = "metrics.json, quality.json, dataset.json, split.json or crops.json"
        raise Problem(f"{data}: a {read} in it has other contents than its stage writes ({error}); {AGAIN}") from error


def _gallery_data(pictures: Gallery | None, names: list[str], class_colours: list[str]) -> dict[str, Any]:
    """What gallery.js reads."""
    if pictures is None:
        return {}
    systems = [{"name": name} for name in pictures.systems]
    return {
        "names": names,
        "colours": class_colours,
        "errors": ERROR_COLOURS,
        "systems": systems,
        "pictures": pictures.pictures,
    }


def _confusion(folder: Path) -> pd.DataFrame:
    names, counts = read_counts(folder / "confusion_counts.csv")
    return pd.DataFrame(counts, index=names, columns=names)


def _there(files: dict[str, Path]) -> dict[str, Path]:
    """Those that exist: pictures are in DVC's cache, which a clone may not have pulled."""
    return {name: file for name, file in files.items() if file.is_file()}


def _curve_charts(folder: Path, colours: dict[str, int]) -> dict[str, Markup]:
    """A chart per metric that DVCLive recorded, over all runs that have it."""
    curves: dict[str, dict[str, charts.Curve]] = {}
    for name in colours:
        for metric, curve in _curves(folder / name).items():
            curves.setdefault(metric, {})[name] = curve
    # Our own SVG, whose every text charts.py escapes.
    return {metric: Markup(charts.line_chart(some, "step", metric, colours)) for metric, some in sorted(curves.items())}


def _look_chart(looks: dict[str, charts.Curve], colours: dict[str, int]) -> dict[str, Markup]:
    """A chart of the looks at systems that are shown; nothing where there were none."""
    some = {name: curve for name, curve in looks.items() if name in colours}
    return {"mIoU on some images": Markup(charts.line_chart(some, "step", "mIoU", colours))} if some else {}


def _curves(run: Path) -> dict[str, charts.Curve]:
    """The metrics that DVCLive recorded of one training, by name: steps and values."""
    root = run / "training/plots/metrics"
    return {file.relative_to(root).with_suffix("").as_posix(): read_curve(file) for file in sorted(root.rglob("*.tsv"))}


def _watched(folder: Path, systems: list[str]) -> dict[str, dict[str, float]]:
    """By system and figure: terms that are watched and not minimised, averaged over the last eighth of the steps."""
    found = {}
    for system in systems:
        curves = _curves(folder / system)
        last = {name: values[-max(1, len(values) // 8) :].mean() for name, (_, values) in curves.items() if len(values)}
        found[system] = {n.removeprefix(WATCHED): v for n, v in last.items() if n.startswith(WATCHED)}
    return {system: figures for system, figures in found.items() if figures}


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
    try:
        with opened(path) as image:
            picture = image.convert("RGB")
    except BROKEN as error:
        raise Problem(f"{path} is damaged ({error}); {AGAIN}") from error
    picture.thumbnail((WIDEST, 10 * WIDEST))
    picture.save(file, format="WEBP", quality=88, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def _percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:.1f}"
