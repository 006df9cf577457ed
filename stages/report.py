"""The results as one self-contained page, `index.html`, and as a table, `systems.csv`.

`index.html` also tells times, peak memory and versions, which differ from run to run and from machine to machine, so
it is no DVC output: two runs must give the same hashes. `systems.csv` holds only what is deterministic, and is one.
"""

from pathlib import Path

from segcore.cli import command, console, provenance
from segcore.files import write_atomically
from segcore.reporting.page import check_complete, read_timings, rendered, row_of, table


def main(*, data: Path = Path("data"), out: Path, params: Path = Path("params.yaml")) -> None:
    """Write index.html and systems.csv into `out` from the results under `data`."""
    settings = command.settings(params)
    if not console.is_main_process():
        return
    with provenance.timed("report"):
        check_complete(data, settings)
        rows = [row_of(data, system, number, settings) for number, system in enumerate(settings.systems)]
        page = rendered(data, rows, settings, params.read_text(), read_timings(provenance.TIMINGS))
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "systems.csv", table(rows).to_csv(index=False).encode())
        write_atomically(out / "index.html", page.encode())
        console.say(f"report: {(out / 'index.html').resolve().as_uri()}")


if __name__ == "__main__":
    command.start(main)
