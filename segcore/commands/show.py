"""Show the table of systems of today's parameters, best first, and where the report page lies: `make demo` ends so.

Reads the results in data/<dataset.name>/, so that none of another data set is among them; writes nothing. Tells what
is missing or stale, and whether the report is of these results. No stage of the pipeline.
"""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from rich import box
from rich.table import Table

from segcore.cli import command, console
from segcore.reporting import comparison, findings, page
from segcore.reporting.results import Results

SCORES = {"mean_iou": "mIoU", "pixel_accuracy": "pixel acc.", "mean_accuracy": "mean acc.", "boundary_f": "boundary F"}
COUNTS = ("masks per class", "masks", "tagged")
OVERS = ("over masks only", "over next row")
NONE = "–"
FEW = 3
"""Systems that were never run, up to which each has a line of its own."""
OLD = "older than these results or of other parameters"


def main(*, params: Path = Path("params.yaml")) -> None:
    settings = command.settings(params)
    data = params.parent / "data" / settings.dataset.name
    results = Results(data, settings)
    table = shown(results)
    if console.console.is_terminal:
        console.console.print(pretty(table, " ".join(results.notes)))
    else:
        console.say(table.to_string(index=False))
        for note in results.notes:
            console.say(note)
    current = [row for row in results.ranked if row.state == "current"]
    for warning in findings.warnings(current):
        console.say(f"warning: {warning}")
    if results.tags_alone:
        console.say("tags only: no validation image has a mask, so there is no mIoU")
    for line in (*wanting(results), *told(results)):
        console.say(line)


def shown(results: Results) -> pd.DataFrame:
    """The columns worth a line of a terminal: scores in per cent, best system first, after it what is stale.

    Systems without a result are not in it.
    """
    lines: list[dict[str, str]] = []
    for row in results.ranked:
        if row.state == "missing":
            continue
        state = f"stale: {row.part.why}" if row.state == "stale" else row.state
        scores = {title: _percent(row.metrics.get(name)) for name, title in SCORES.items()}
        if results.tags_alone:
            scores = {"tags only: mAP": _percent(row.tag_precision)} | scores
        if found := results.compared.get(row.system):
            scores["mIoU"] = comparison.spread(found.mean, found.std)
        overs = (found.over_masks, found.over_next) if found else (None, None)
        differences = {title: comparison.told(over) or NONE for title, over in zip(OVERS, overs, strict=True)}
        counts = (row.masks_per_class or None, row.strong_images, row.tagged_images)
        texts = (NONE if count is None else str(count) for count in counts)
        lines.append(
            {"system": row.system, "state": state} | scores | differences | dict(zip(COUNTS, texts, strict=True))
        )
    return pd.DataFrame(lines)


def wanting(results: Results) -> Iterator[str]:
    """What is missing or stale, with the command that makes it; systems that were never run, if many, in one line."""
    unrun = [row.system for row in results.rows if row.state == "missing"]
    for part in results.wanting:
        if len(unrun) <= FEW or part.path not in {f"results/{system}" for system in unrun}:
            yield f"{part.path} is {part.state}: `dvc repro {part.stage}`"
    if len(unrun) > FEW:
        yield f"not run yet: {', '.join(unrun)}; `make all` runs them, `dvc repro evaluate@<system>` one"


def told(results: Results) -> Iterator[str]:
    """Where the report is, and whether it is of these results."""
    table, html = results.data / "report/systems.csv", results.data / "report/index.html"
    if not html.is_file():
        yield f"report: {html} is not there; `make report` writes it"
    elif f'content="{page.mark(results)}"' not in html.read_text():
        yield f"report: {html.resolve()} is {OLD}; `make report` writes it anew"
    else:
        yield f"report: {html.resolve()}"
    if table.is_file() and table.read_text() != results.table().to_csv(index=False):
        yield f"{table} is {OLD}; `dvc repro -s report` writes it anew"


def _percent(fraction: float | None) -> str:
    return NONE if fraction is None else f"{100 * fraction:.1f}"


def pretty(table: pd.DataFrame, note: str) -> Table:
    drawn = Table(box=box.SIMPLE_HEAD, caption=note)
    for number, title in enumerate(table.columns):
        drawn.add_column(title, justify="right" if number > 1 else "left", no_wrap=number == 0)
    for cells in table.itertuples(index=False):
        drawn.add_row(*cells)
    return drawn


if __name__ == "__main__":
    command.start(main)
