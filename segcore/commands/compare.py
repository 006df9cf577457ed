"""The report, with what changed since another commit: `make report COMPARE=<commit>`.

Reads that commit from Git and DVC's cache and leaves the workspace as it is; writes report/index.html alone. No stage
of the pipeline: the page is no output of DVC, and another commit no dependency.
"""

import tempfile
from pathlib import Path

from segcore.cli import command, console, provenance, revisions
from segcore.files import write_atomically
from segcore.reporting import comparison, earlier
from segcore.reporting.page import Run, rendered
from segcore.reporting.results import Results


def main(*, revision: str, params: Path = Path("params.yaml")) -> None:
    """Compare today's results with those of `revision`: a hash, a branch, a tag, HEAD~3."""
    settings = command.settings(params)
    data = Path("data") / settings.dataset.name
    results = Results(data, settings)
    with tempfile.TemporaryDirectory() as scratch:
        commit = revisions.lay_out(revision, data, Path(scratch))
        found = earlier.beside(results, commit, Path(scratch))
    run = Run(provenance.machine(), provenance.commit(), provenance.versions(), provenance.timings(data))
    out = data / "report" / "index.html"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, rendered(results, params.read_text("utf-8"), run, found).encode())
    console.say(f"since {commit}:")
    for change in found.changes:
        console.say(f"  {change.system}: {comparison.told(change.over) or change.why}")
    console.say(f"{len(found.params)} parameters differ; report: {out.resolve().as_uri()}")


if __name__ == "__main__":
    command.start(main)
