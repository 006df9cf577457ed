"""The results as one self-contained page, `index.html`, and as a table, `systems.csv`, of whatever is there.

`index.html` also tells times, peak memory and versions, which differ from run to run and from machine to machine, so
it is no DVC output: two runs must give the same hashes. `systems.csv` holds only what is deterministic, and is one.
"""

from pathlib import Path

from segcore.cli import command, console, looks, provenance
from segcore.files import write_atomically
from segcore.reporting.page import Run, rendered
from segcore.reporting.results import Results


def main(*, data: Path, params: Path = Path("params.yaml")) -> None:
    """Write report/index.html and report/systems.csv into `data`, the data set's folder, from the results in it."""
    settings = command.settings(params)
    if not console.is_main_process():
        return
    out = data / "report"
    with provenance.timed("report", out):
        results = Results(data, settings)
        seen = looks.curves(data, [*settings.systems])
        run = Run(provenance.machine(), provenance.commit(), provenance.versions(), provenance.timings(data), seen)
        page = rendered(results, params.read_text("utf-8"), run)
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "systems.csv", results.table().to_csv(index=False).encode("utf-8"))
        write_atomically(out / "index.html", page.encode())
        for part in results.wanting:
            console.say(
                f"{part.path} is {part.state}{f' ({part.why})' * (part.state == 'stale')}: `dvc repro {part.stage}`"
            )
        console.say(f"report: {(out / 'index.html').resolve().as_uri()}")


if __name__ == "__main__":
    command.start(main)
