"""Train and evaluate systems with other seeds, and keep what the table needs of each, for means and intervals.

Each seed runs in a copy of the project that shares DVC's cache (`segcore.cli.experiments`); the workspace stays as it
is. What is kept already and of today's parameters is not run again, with `--anew` unless it is of other code than
today's; a run that was killed goes on. The report and `make tables` then show the spread over seeds. No stage of the
pipeline.
"""

from pathlib import Path

import typer

from segcore.cli import command, console
from segcore.cli.experiments import Copies
from segcore.errors import Problem
from segcore.reporting import kept
from segcore.reporting.results import data_set_of


def main(
    *,
    seeds: list[int],
    systems: list[str] = [],  # noqa: B006 typer reads it, nobody changes it
    params: Path = Path("params.yaml"),
    keep_copies: bool = False,
    anew: bool = False,
) -> None:
    """Run `systems` (all of params.yaml where none is named) with each of `seeds`: `--seeds 1 --seeds 2`."""
    settings = command.settings(params)
    chosen = kept.chosen_systems(settings, systems)
    root = params.parent
    data = root / "data" / settings.dataset.name
    data_set = data_set_of(data, settings)
    if data_set is None and not kept.is_generated(settings):
        raise Problem(f"{data} has no data set of today's parameters, of which results could be", made_by="prepare")
    if settings.seed in seeds:
        console.say(f"seed {settings.seed} is that of params.yaml: `dvc repro` makes its results")
    wanted = [
        kept.Experiment(system, {"seed": seed}, data / "results" / system / kept.SEEDS / str(seed))
        for seed in dict.fromkeys(seeds)
        for system in chosen
        if seed != settings.seed
    ]
    failed = Copies(root, params).perform(wanted, settings, data_set, keep_copies, anew)
    if failed:
        console.say("not done:\n" + "\n".join(failed))
        raise typer.Exit(1)
    console.say("`make report tables` shows them")


if __name__ == "__main__":
    command.start(main)
