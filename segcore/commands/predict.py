"""`segcore predict`: pictures into masks."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segcore.cli import app, console

if TYPE_CHECKING:
    from segcore.prediction.listing import Photo
    from segcore.prediction.model import Model
    from segcore.prediction.polygons import Polygons
    from segcore.prediction.run import Wanted

NAMED = 20


def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="data/<data set>/segmenters/<system>")],
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGES...", help="Files, folders (searched through), patterns, .txt lists.")
    ],
    out: Annotated[Path, typer.Option(help="Where masks, overlays and predictions.csv go.")],
    overlay: Annotated[
        bool, typer.Option("--overlay", help="Also each photograph with its classes in colour.")
    ] = False,
    confidence: Annotated[
        bool, typer.Option("--confidence", help="Also the probability of each pixel's class, 255 being 1.")
    ] = False,
    outlines: Annotated[
        str | None, typer.Option("--polygons", help="Also outlines: coco or geojson, for each component of a class.")
    ] = None,
    per: Annotated[str, typer.Option("--per", help="What an outline is of: component or class.")] = "component",
    tile: Annotated[
        str | None,
        typer.Option(help="Predict larger pictures in windows of so many pixels; own: of the network's size."),
    ] = None,
    overlap: Annotated[
        int | None, typer.Option(min=0, help="Pixels that windows share; a quarter of them if not told.")
    ] = None,
    tags: Annotated[
        Path | None, typer.Option(help="CSV with image_id,tags: an image shows these classes at most.")
    ] = None,
    scales: Annotated[
        str | None, typer.Option(help="Such as 0.75,1,1.25: predict at several sizes, instead of as trained.")
    ] = None,
    flip: Annotated[bool | None, typer.Option(help="Predict the mirrored picture, too.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 8,
    shard: Annotated[str, typer.Option(help="i/n: the i-th of n parts, from 1; torchrun says it by itself.")] = "1/1",
    merge: Annotated[
        bool, typer.Option("--merge", help="Predict nothing: see that all shards are done, and write the tables.")
    ] = False,
    engine: Annotated[str, typer.Option(help="local, or ray: by actors of the cluster at RAY_ADDRESS.")] = "local",
    workers: Annotated[int | None, typer.Option(min=1, help="Actors of Ray at a time; one if not told.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:1; a GPU if there is one.")] = None,
    how: Annotated[
        Path | None, typer.Option(help="JSON with the key prediction, for a model outside of its project.")
    ] = None,
) -> None:
    """Masks of photographs, by a model that `dvc repro` trained.

    A picture that cannot be read is named and left out; then the exit code is 1. Run again, the command does what is
    not done yet.

    \b
    Example:
      segcore predict data/own/segmenters/deeplab holiday/ --out predicted --overlay
    """
    with app.told():
        from rich.progress import track

        from segcore import memory
        from segcore.prediction import listing, merging, run
        from segcore.prediction.model import load, model_folder

        memory.keep()
        place, places = _shard(shard)
        _check_engine(engine, workers, places, merge)
        loaded = load(model, device="cpu" if engine == "ray" else device, how=how)
        _change_views(loaded, scales, flip)
        _change_tiles(loaded, tile, overlap)
        allowed = None if tags is None else _tags(tags, loaded.classes)
        photos = listing.photos(images)
        wanted = run.Wanted(overlay, confidence, batch, place, places, allowed, _polygons(outlines, per))
        if engine == "ray":
            _tell(out, *_by_ray(model, how, device, loaded, photos, out, wanted, workers or 1))
            return
        work = merging.merge if merge else run.predict_folder
        outcomes = work(loaded, model_folder(model) / "model.safetensors", photos, out, wanted)
        quiet = not console.console.is_terminal
        mine = len(photos) if merge else -(-len(photos) // places)
        new = before = 0
        bad: list[str] = []
        for outcome in track(outcomes, "predicting", mine, console=console.console, disable=quiet, transient=True):
            if outcome.problem is not None:
                bad.append(outcome.problem)
            elif outcome.repeated:
                before += 1
            else:
                new += 1
        _tell(out, new, before, bad)


def _tell(out: Path, new: int, before: int, bad: list[str]) -> None:
    """Say what was done; end with an exit code of its own if pictures were left out."""
    from segcore.prediction.tables import TABLE

    for problem in bad[:NAMED]:
        console.console.print(f"left out: {problem}", markup=False)
    if len(bad) > NAMED:
        console.say(f"... and {len(bad) - NAMED} more")
    already = f", {before} were there already" if before else ""
    console.say(f"{new} pictures predicted{already}, {len(bad)} left out: {out / TABLE}")
    if bad:
        raise typer.Exit(app.PARTLY)


def _check_engine(engine: str, workers: int | None, places: int, merge: bool) -> None:
    from segcore.errors import Problem, hint

    if engine not in ("local", "ray"):
        raise Problem(f"--engine: found '{engine}'; it must be local or ray{hint(engine, ('local', 'ray'))}")
    if engine == "local" and workers is not None:
        raise Problem("--workers: they are Ray's; give --engine ray, too")
    if places > 1 and (merge or engine == "ray"):
        raise Problem(f"{'--merge' if merge else '--engine ray'}: it is of all shards; leave --shard out")
    if merge and engine == "ray":
        raise Problem("--merge: nothing is predicted; leave --engine out")


def _by_ray(
    model: Path,
    how: Path | None,
    device: str | None,
    loaded: "Model",
    photos: "Sequence[Photo]",
    out: Path,
    wanted: "Wanted",
    workers: int,
) -> tuple[int, int, list[str]]:
    """Predict by Ray: how many pictures now, how many before, and what is wrong with others."""
    from segcore.errors import Problem
    from segcore.prediction import ray_data

    if device not in (None, "cpu", "cuda"):
        raise Problem(f"--device: found '{device}'; with --engine ray it must be cpu or cuda, Ray chooses which")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    gpus = ray_data.connect(os.environ.get("RAY_ADDRESS"), workers)
    on = device or ("cuda" if gpus else "cpu")
    absolute = None if how is None else how.absolute()
    loading = ray_data.Loading(model.absolute(), absolute, on, loaded.views, loaded.tiles)
    told = [replace(photo, path=photo.path.absolute()) for photo in photos]
    shards = list(ray_data.predict_folder(loading, loaded, told, out.absolute(), wanted, workers))
    bad = [problem for shard in shards for problem in shard.problems]
    return sum(shard.new for shard in shards), sum(shard.before for shard in shards), bad


def _shard(text: str) -> tuple[int, int]:
    """Which part of the work is this process's, from 0, and how many there are."""
    from segcore.cli import shards

    if text == "1/1" and "WORLD_SIZE" in os.environ:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    one = shards.shard(text)
    return one.number - 1, one.of


def _change_tiles(model: object, tile: str | None, overlap: int | None) -> None:
    from segcore.errors import Problem
    from segcore.prediction.model import Model
    from segcore.prediction.tiles import Tiles

    assert isinstance(model, Model)
    if tile is None:
        if overlap is not None:
            raise Problem("--overlap: it is of windows; give --tile, too")
        return
    own = int(model.card["input_size"])
    if tile != "own" and not (tile.isdecimal() and int(tile) > 0):
        raise Problem(f"--tile: found '{tile}'; it must be a number of pixels, or own for the network's own {own}")
    size = own if tile == "own" else int(tile)
    model.in_windows(Tiles(size, size // 4 if overlap is None else overlap))


def _polygons(outlines: str | None, per: str) -> "Polygons | None":
    from segcore.errors import Problem, hint
    from segcore.prediction.polygons import ENDINGS, Polygons

    if per not in ("component", "class"):
        raise Problem(f"--per: found '{per}'; it must be component or class{hint(per, ('component', 'class'))}")
    if outlines is None:
        return None
    if outlines not in ENDINGS:
        raise Problem(f"--polygons: found '{outlines}'; it must be {' or '.join(ENDINGS)}{hint(outlines, ENDINGS)}")
    return Polygons(outlines, per)


def _change_views(model: object, scales: str | None, flip: bool | None) -> None:
    from segcore.config.reading import section
    from segcore.config.section import Views
    from segcore.errors import Problem
    from segcore.prediction.model import Model

    assert isinstance(model, Model)
    if scales is None and flip is None:
        return
    views = model.views.model_dump(mode="json")
    if flip is not None:
        views["flip"] = flip
    if scales is not None:
        try:
            views["scales"] = [float(part) for part in scales.split(",")]
        except ValueError:
            raise Problem(f"--scales: found '{scales}'; it must be numbers by commas, such as 0.75,1,1.25") from None
    model.views = section({"options": views}, "options", Views)


def _tags(file: Path, classes: tuple[str, ...]) -> dict[str, list[int]]:
    """The classes that each picture may show, by its name without ending."""
    import csv

    from segcore.errors import Problem, hint

    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            rows = list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Problem(f"{file}: cannot be read as CSV ({error})") from error
    if not rows or not {"image_id", "tags"} <= rows[0].keys():
        raise Problem(f"{file}: the first line must be image_id,tags, and others must follow")
    allowed: dict[str, list[int]] = {}
    for row in rows:
        names = (row["tags"] or "").split()
        if unknown := [name for name in names if name not in classes[1:]]:
            raise Problem(
                f"{file}: {row['image_id']}: found the tag '{unknown[0]}'; the model knows {', '.join(classes[1:])}"
                f"{hint(unknown[0], classes[1:])}"
            )
        allowed[row["image_id"]] = sorted(classes.index(name) for name in names)
    return allowed
