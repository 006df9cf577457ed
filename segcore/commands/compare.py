"""`segcore compare`: the report, with what changed since another commit; `make report COMPARE=<commit>` starts it, too.

No stage of the pipeline: the page is no output of DVC, and another commit no dependency.
"""

from pathlib import Path
from typing import Annotated

import typer

from segcore.cli import app, console


def compare(
    revision: Annotated[str, typer.Argument(metavar="REVISION", help="A hash, a branch, a tag, HEAD~3.")],
    params: Annotated[Path, typer.Option(help="The project's parameters.")] = Path("params.yaml"),
) -> None:
    """The report of today's results, with what changed since another commit of the project.

    Reads that commit from Git and DVC's cache and leaves the workspace as it is; writes report/index.html alone.

    \b
    Example:
      segcore compare HEAD~3
    """
    with app.told():
        written(revision, params)


def written(revision: str, params: Path = Path("params.yaml")) -> None:
    """Write the page, and say how each system changed.

    Raises:
        Problem: there is no such commit, or nothing to compare.
    """
    import tempfile

    from segcore.cli import command, looks, provenance, revisions
    from segcore.files import write_atomically
    from segcore.reporting import comparison, earlier
    from segcore.reporting.page import Run, rendered
    from segcore.reporting.results import Results

    settings = command.settings(params)
    data = Path("data") / settings.dataset.name
    results = Results(data, settings)
    with tempfile.TemporaryDirectory() as scratch:
        commit = revisions.lay_out(revision, data, Path(scratch))
        found = earlier.beside(results, commit, Path(scratch))
    seen = looks.curves(data, [*settings.systems])
    run = Run(provenance.machine(), provenance.commit(), provenance.versions(), provenance.timings(data), seen)
    out = data / "report" / "index.html"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, rendered(results, params.read_text("utf-8"), run, found).encode())
    console.say(f"since {commit}:")
    for change in found.changes:
        console.say(f"  {change.system}: {comparison.told(change.over) or change.why}")
    console.say(f"{len(found.params)} parameters differ; report: {out.resolve().as_uri()}")
