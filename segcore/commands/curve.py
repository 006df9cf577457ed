"""mIoU against annotation for some systems: run what is missing, then write the curve and its advice.

Every point, a number of masks per class or of tagged images, runs with each seed in a copy of the project
(`segcore.cli.experiments`); what is kept already is not run again (with `--anew` unless it is of other code), and a run
that was killed goes on. Writes into `data/<name>/curve/`: `curve.csv` (a line a result), `curve.png` and `advice.txt`.
No stage of the pipeline.

The costs are those that Bearman et al. 2016 ("What's the point: semantic segmentation with point supervision") measured
on PASCAL VOC: 20.0 seconds an image for its tags, 239.7 for all of its masks.
"""

from pathlib import Path

import typer

from segcore.cli import command, console
from segcore.cli.experiments import Copies
from segcore.errors import Problem
from segcore.files import write_atomically
from segcore.reporting import curve, curve_figure, kept, law
from segcore.reporting.results import data_set_of, split_of

MASKS = ["0", "1", "2", "5", "10", "25", curve.ALL]
LEAST_SECONDS = 0.1


def main(
    *,
    systems: list[str],
    masks: list[str] = MASKS,  # noqa: B006 typer reads it, nobody changes it
    tagged: list[int] = [],  # noqa: B006
    seeds: list[int] = [0],  # noqa: B006
    tag_seconds: float = 20.0,
    mask_seconds: float = 239.7,
    params: Path = Path("params.yaml"),
    keep_copies: bool = False,
    anew: bool = False,
    run: bool = True,
) -> None:
    """Run `systems` at `--masks 1 --masks all ...` and `--tagged 400 ...`; `--no-run` draws what is kept already."""
    cost = _cost(tag_seconds, mask_seconds)
    settings = command.settings(params)
    data = params.parent / "data" / settings.dataset.name
    data_set = data_set_of(data, settings)
    split = split_of(data, settings)
    if data_set is None or split is None:
        raise Problem(f"{data} has no data set and split of today's parameters", made_by="split")
    points = [*map(curve.Point.of_masks, masks), *map(curve.Point.of_tags, tagged)]
    failed = []
    if run:
        chosen = kept.chosen_systems(settings, systems)
        wanted = curve.experiments(settings, data, chosen, points, seeds, console.say)
        failed = Copies(params.parent, params).perform(wanted, settings, data_set, keep_copies, anew)
    found = curve.measured(data, settings, data_set, cost)
    if not found:
        raise Problem(f"{data / curve.FOLDER} holds no result of today's parameters")
    table, advice = curve.table(found), curve.advice(found, settings, split, cost)
    write_atomically(data / curve.FOLDER / "curve.csv", table.to_csv(index=False).encode())
    write_atomically(data / curve.FOLDER / "curve.png", curve_figure.draw(table, curve.laws(found)))
    write_atomically(data / curve.FOLDER / "advice.txt", "".join(f"{line}\n" for line in advice).encode())
    for line in advice:
        console.say(line)
    console.say(f"the curve: {(data / curve.FOLDER / 'curve.png').resolve()}")
    if failed:
        console.say("not done:\n" + "\n".join(failed))
        raise typer.Exit(1)


def _cost(tag_seconds: float, mask_seconds: float) -> law.Cost:
    """What an image takes, checked before hours of training.

    Raises:
        Problem: one is no time.
    """
    for option, seconds in (("--tag-seconds", tag_seconds), ("--mask-seconds", mask_seconds)):
        if not LEAST_SECONDS <= seconds < float("inf"):
            raise Problem(f"{option}: found {seconds:g}; allowed are the seconds of an image, from {LEAST_SECONDS} on")
    return law.Cost(tag_seconds, mask_seconds)


if __name__ == "__main__":
    command.start(main)
