"""`segcore pack` and `segcore index`: a data set as WebDataset tars, which DVC and object stores handle well."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segcore.cli import app, console

if TYPE_CHECKING:
    from segcore.exchange.packs import Packed
    from segcore.importers import Entry


def pack(
    into: Annotated[Path, typer.Option(help="The folder to make.")],
    params: Annotated[Path, typer.Option(help="Its `dataset` names the devkit folder, its lists and tags.")] = Path(
        "params.yaml"
    ),
    shard_size: Annotated[float, typer.Option(min=0.001, max=1000, help="Gigabytes of a shard, about.")] = 1.0,
) -> None:
    """Write a devkit folder as WebDataset tars: pictures, masks, tags, and an index beside them.

    The same folder gives the same bytes. What `prepare` makes of the shards is what it makes of the folder.

    \b
    Example:
      segcore pack --into shards
    """
    with app.told():
        from segcore.config.data import VocParams
        from segcore.config.settings import load
        from segcore.errors import Problem
        from segcore.exchange import packs
        from segcore.importers import voc

        dataset = load(params).dataset
        if not isinstance(dataset, VocParams):
            raise Problem(f"{params}: found dataset.layout: {dataset.layout}; a devkit folder is packed, layout: voc")
        listing = voc.read(Path(dataset.root).expanduser(), dataset)
        made = packs.pack(listing, into, round(shard_size * 1e9), _watched)
        _tell(made, into)
        console.say(
            f"to read them: dataset: layout: webdataset, name: {dataset.name}, root: {into}, shards: null, "
            f"convert_palette: {str(dataset.convert_palette).lower()}, sixteen_bit: {dataset.sixteen_bit}, "
            f"duplicates: {dataset.duplicates}"
        )


def index(
    tars: Annotated[
        list[str], typer.Argument(metavar="TAR...", help="Tars, or one folder of them: paths, or s3://, http://, ...")
    ],
    classes: Annotated[Path, typer.Option(help="The classes: a name a line, background first.")],
    into: Annotated[Path, typer.Option(help="The folder for the index; that of the tars, if they are here.")],
) -> None:
    """List what is in WebDataset tars that are there already, here or in an object store; each is read once.

    Names are train-00000.tar and on, val-00000.tar and on; in them <id>.jpg, <id>.json with {"tags": [...]}, and
    <id>.png with the mask where there is one.

    \b
    Example:
      segcore index s3://bucket/set --classes classes.txt --into shards
    """
    with app.told():
        from segcore.errors import Problem, Problems
        from segcore.exchange import packs
        from segcore.exchange.reading import read_text
        from segcore.importers.voc import wrong_classes

        names = [line.strip() for line in read_text(classes).splitlines() if line.strip()]
        if problems := wrong_classes(classes, names):
            raise Problems("the classes cannot be used:", problems)
        found = _tars(tars)
        folders = {one.rstrip("/").rpartition("/")[0] for one in found}
        if len(folders) > 1:
            raise Problem(f"the tars lie in {len(folders)} folders; bring them into one, where an index finds them")
        _tell(packs.index(found, names, into), into)


def _tars(given: list[str]) -> list[str]:
    from segcore.data import remote

    if len(given) > 1 or given[0].endswith(".tar"):
        return given
    if remote.is_remote(given[0]):
        return remote.listing(given[0])
    return sorted(str(path) for path in Path(given[0]).glob("*.tar"))


def _tell(made: "Packed", into: Path) -> None:
    size, images = sum(shard.bytes for shard in made.shards), sum(shard.images for shard in made.shards)
    for ending, count in made.ignored.items():
        console.say(f"warning: {count} members that end in .{ending} are passed over")
    console.say(f"{into}: {images:,} images in {len(made.shards)} shards, {size / 1e9:.2f} GB, and their index")


def _watched(items: "Iterable[Entry]", total: int) -> "Iterable[Entry]":
    from rich.progress import track

    quiet = not console.console.is_terminal
    return track(items, "packing", total, console=console.console, disable=quiet, transient=True)
