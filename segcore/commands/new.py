"""`segcore new` and `segcore upgrade`: a project of a person's own, in which `dvc repro` works."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from segcore.cli import app, console

RECOMMENDED = "decoupled_fpn"
"""By far the best of the systems that were tried on photographs with few masks: docs/results.md."""


def new(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that is not there yet, or is empty.")],
    systems: Annotated[
        str,
        typer.Option(help="Which to train, by commas; decoupled_fpn learns from masks and tags, deeplab from masks."),
    ] = RECOMMENDED,
    trunk: Annotated[
        str, typer.Option(help="lite (its weights are installed), resnet18 or resnet50 (downloaded when used first).")
    ] = "lite",
    gpu: Annotated[bool, typer.Option("--gpu", help="Load pictures by several processes, to keep a GPU busy.")] = False,
    name: Annotated[str, typer.Option(help="Of the data set; results lie in data/NAME/.")] = "own",
    images: Annotated[str, typer.Option(help="The folder in DIR that `segcore import` fills.")] = "images",
    git: Annotated[bool, typer.Option(help="Make it a Git repository, unless it lies in one.")] = True,
) -> None:
    """Start a project: params.yaml, dvc.yaml, and nothing of anybody else's.

    \b
    Example:
      segcore new cups
      segcore new cups --systems decoupled_fpn,deeplab --trunk resnet50 --gpu
    """
    with app.told():
        from segcore import projects
        from segcore.errors import Problem
        from segcore.files import write_atomically

        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise Problem(f"{folder} is there already and not empty; name another folder")
        wanted = tuple(part.strip() for part in systems.split(",") if part.strip())
        params = checked(projects.params_yaml(projects.Wishes(name, images, trunk, gpu, wanted)))
        folder.mkdir(parents=True, exist_ok=True)
        begin(folder, git)
        texts = {
            "params.yaml": params,
            "dvc.yaml": projects.dvc_yaml(),
            projects.STAMP: projects.stamp_text(),
            ".gitignore": projects.IGNORED.format(images=images),
            ".dvcignore": projects.DVC_IGNORED,
            projects.DATA_IGNORED: (projects.template() / projects.DATA_IGNORED).read_text(),
        }
        for file, text in texts.items():
            (folder / file).parent.mkdir(exist_ok=True)
            write_atomically(folder / file, text.encode())
        if (folder / ".git").is_dir():
            commit(folder)
        console.say(f"{folder}: a project with {', '.join(wanted)}. Next, in it:")
        console.say(f"  segcore import FORMAT SOURCE --into {images}")
        console.say("  dvc repro report")
        console.say(f"  segcore predict data/{name}/segmenters/{wanted[0]} PHOTOS --out predicted")


def upgrade(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="The project.")] = Path(),
) -> None:
    """Make a project one of the segcore that is installed: dvc.yaml is written anew, params.yaml stays.

    The next `dvc repro` makes again what the installed code makes otherwise.

    \b
    Example:
      segcore upgrade cups
    """
    with app.told():
        from segcore import projects
        from segcore.errors import Problem
        from segcore.files import write_atomically

        if not (folder / "params.yaml").is_file():
            raise Problem(f"{folder.resolve()} holds no params.yaml; name the folder of a project")
        checked((folder / "params.yaml").read_text("utf-8"))
        write_atomically(folder / "dvc.yaml", projects.dvc_yaml().encode())
        write_atomically(folder / projects.STAMP, projects.stamp_text().encode())
        console.say(
            f"{folder}: of segcore {projects.stamp()['version']} now; `dvc repro` makes again what its code concerns"
        )


def checked(text: str) -> str:
    """The text of a params.yaml, once everything in it has been checked."""
    from segcore.cli import command
    from segcore.config.reading import parsed
    from segcore.config.settings import Settings

    command.checked(Settings(parsed(text, "params.yaml")))
    return text


def begin(folder: Path, git: bool) -> None:
    """Make the folder one of DVC's, and of Git's where that is wanted and there.

    Raises:
        Problem: Git or DVC refused.
    """
    inside = git and shutil.which("git") is not None
    options = ["--quiet"]
    if not inside:
        options.append("--no-scm")
    elif _said(["git", "rev-parse", "--show-toplevel"], folder, may_fail=True):
        options.append("--subdir")
    else:
        _said(["git", "init", "--quiet"], folder)
    _said([sys.executable, "-m", "dvc", "init", *options], folder)
    for setting in (["core.analytics", "false"], *([["core.autostage", "true"]] if inside else [])):
        _said([sys.executable, "-m", "dvc", "config", "--quiet", *setting], folder)


def commit(folder: Path) -> None:
    """The first commit, without which DVC's logging refuses to work; by nobody where Git does not know its person."""
    known = _said(["git", "config", "user.email"], folder, may_fail=True)
    nobody = [] if known else ["-c", "user.name=segcore", "-c", "user.email=segcore@localhost"]
    _said(["git", "add", "--all"], folder)
    _said(["git", *nobody, "commit", "--quiet", "--no-verify", "--message", "A project of segcore new"], folder)


def _said(command: list[str], folder: Path, may_fail: bool = False) -> str:
    from segcore.errors import Problem

    own = {key: value for key, value in os.environ.items() if not key.startswith(("GIT_", "DVC_"))}
    done = subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True)
    if done.returncode and not may_fail:
        raise Problem(f"{folder}: `{' '.join(command)}` failed: {(done.stderr or done.stdout).strip()}")
    return "" if done.returncode else done.stdout.strip()
