"""Show the table of systems, best first, and where the report page lies: what `make demo` ends with.

Reads `systems.csv` of the report; writes nothing. No stage of the pipeline.
"""

from pathlib import Path

import pandas as pd
from rich import box
from rich.table import Table

from segcore.cli import command, console
from segcore.errors import Problem

SCORES = {"mean_iou": "mIoU", "pixel_accuracy": "pixel acc.", "mean_accuracy": "mean acc.", "boundary_f": "boundary F"}
COUNTS = {"masks_per_class": "masks per class", "strong_images": "masks", "tagged_images": "tagged"}


def main(*, report: Path = Path("data/report")) -> None:
    file, page = report / "systems.csv", report / "index.html"
    if not file.is_file():
        raise Problem(f"{file}: there is no table of systems yet; `make demo` makes it, or `dvc repro`")
    table = shown(pd.read_csv(file, dtype=dict.fromkeys(COUNTS, str)))
    if console.console.is_terminal:
        console.console.print(pretty(table))
    else:
        console.say(table.to_string(index=False))
    console.say(
        f"report: {page.resolve()}" if page.is_file() else f"report: {page} is not there; `make report` writes it"
    )


def shown(systems: pd.DataFrame) -> pd.DataFrame:
    """The columns worth a line of a terminal: scores in per cent, best system first."""
    ranked = systems.sort_values("mean_iou", ascending=False, kind="stable")
    scores = {title: ranked[name].map(_percent) for name, title in SCORES.items()}
    counts = {title: ranked[name] for name, title in COUNTS.items()}
    return pd.DataFrame({"system": ranked["system"]} | scores | counts)


def _percent(fraction: float) -> str:
    return "–" if pd.isna(fraction) else f"{100 * fraction:.1f}"


def pretty(table: pd.DataFrame) -> Table:
    drawn = Table(box=box.SIMPLE_HEAD, caption="scores in per cent, on the validation images")
    for number, title in enumerate(table.columns):
        drawn.add_column(title, justify="right" if number else "left", no_wrap=number == 0)
    for cells in table.itertuples(index=False):
        drawn.add_row(*cells)
    return drawn


if __name__ == "__main__":
    command.start(main)
