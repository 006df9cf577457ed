"""`segcore stage`: what the dvc.yaml of a person's project starts. Not for people."""

import sys
from importlib import import_module, util
from pathlib import Path
from typing import Annotated

import typer

from segcore.cli import app

BEFORE_ALL = ("check_params", "outside_files")
"""Commands that DVC starts as it does stages."""


def stage(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A file of segcore's stages.")],
) -> None:
    """One stage of the pipeline, started by `dvc repro`; refused in a project of another segcore.

    \b
    Example:
      segcore stage check_params --data data/own
    """
    with app.told():
        from segcore import projects
        from segcore.cli import command

        module = _module(name)
        projects.check_stamp(Path())
    sys.argv = [f"segcore stage {name}", *context.args]
    command.start(import_module(module).main)


def _module(name: str) -> str:
    """The stages lie within the package once that is built, and beside it in a checkout."""
    from segcore import sources
    from segcore.errors import Problem, hint

    if name in BEFORE_ALL:
        return f"segcore.commands.{name}"
    known = sorted(
        file.removeprefix("stages/")[:-3]
        for file in sources.files()
        if file.startswith("stages/") and file.endswith(".py")
    )
    known.remove("__init__")
    if name not in known:
        allowed = [*BEFORE_ALL, *known]
        raise Problem(f"found the stage '{name}'; there are {', '.join(allowed)}{hint(name, allowed)}")
    inside = util.find_spec("segcore.stages") is not None
    return f"segcore.stages.{name}" if inside else f"stages.{name}"
