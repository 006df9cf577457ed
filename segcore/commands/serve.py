"""`segcore serve`: a local page to look at what a model predicts, and to correct it."""

from pathlib import Path
from typing import Annotated

import typer

from segcore.cli import app, console


def serve(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="data/<data set>/segmenters/<system>")],
    data: Annotated[
        Path | None, typer.Option(help="The data set to browse and to save masks into: `images`. Without, look only.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of 127.0.0.1; 0 for any that is free.")] = 8765,
    correct_validation: Annotated[
        bool, typer.Option("--correct-validation", help="Also replace masks that results are measured by.")
    ] = False,
    train_list: Annotated[
        str | None, typer.Option(help="ImageSets/Segmentation/<name>.txt that new photos are added to.")
    ] = None,
    val_list: Annotated[str | None, typer.Option(help="The list of those that are left alone.")] = None,
    browser: Annotated[bool, typer.Option("--browser", help="Open the page in a browser at once.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:1; a GPU if there is one.")] = None,
    how: Annotated[
        Path | None, typer.Option(help="JSON with the key prediction, for a model outside of its project.")
    ] = None,
) -> None:
    """A page on this machine: drop a photo, see what the model finds, correct it with a brush, save it as a mask.

    Nothing leaves the machine, and nobody else reaches the page. The lists are those of the model's project, or train
    and val. A mask that is replaced is kept in DIR/replaced.

    \b
    Example:
      segcore serve data/own/segmenters/deeplab --data images
    """
    with app.told():
        import webbrowser

        from aiohttp import web

        from segcore.prediction.model import load
        from segcore.serving import local
        from segcore.serving.data_set import open_data_set
        from segcore.serving.server import Page

        socket = local.listen(port)
        loaded = load(model, device=device, how=how)
        data_set = None
        if data is not None:
            data_set = open_data_set(data, model, train_list, val_list, loaded.classes)
            lists = f"{data_set.params.train_list}.txt to learn from, {data_set.params.val_list}.txt to measure by"
            console.say(f"{data}: {len(data_set.members)} pictures; {lists}; tags from {data_set.params.tags.kind}")
            if problems := data_set.listing.problems:
                console.say(f"warning: `prepare` would refuse this data set for {len(problems)} reasons: {problems[0]}")
        page = Page(loaded, data_set, correct_validation)
        address = f"http://{local.HOST}:{socket.getsockname()[1]}/{page.secret}/"
        console.say(f"{loaded.name} on {loaded.device}: {address}")
        console.say("Ctrl-C ends it.")
        if browser:
            webbrowser.open(address)
        web.run_app(page.app, sock=socket, print=lambda *_: None, access_log=None, shutdown_timeout=1)
        console.say("ended")
