"""Results of other runs that are kept beside today's: of other seeds, and of other splits for the curve.

A kept result is what a table needs: `metrics.json`, `images.parquet`, the counts of its split (`split.json`), and
`made_of.json` with two fingerprints more: `run`, that of all parameters behind it, and `code`, that of all code. They
are a few kilobytes each and lie in Git, not in DVC's cache, so that any clone can write the table; those of other seeds
in `results/<system>/seeds/<seed>/`, on which the report depends with the rest of `results`. A result of parameters that
are no longer today's is never mixed with those that are. One of other code is: few changes of code change a result, and
each costs hours to make again; but it is told.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segcore import made_of
from segcore.config import fingerprints, plan
from segcore.config.data import ShapesParams
from segcore.config.settings import Settings
from segcore.config.systems import SEGMENTERS
from segcore.errors import Problem, hint
from segcore.evaluation import per_image
from segcore.files import fingerprint, write_atomically
from segcore.reporting import code_behind
from segcore.sources import Code

SEEDS = "seeds"
RUN, CODE = "run", "code"
SPLIT = "split.json"
FILES = ("metrics.json", per_image.FILE, SPLIT)


@dataclass(frozen=True)
class Experiment:
    """A system by other values of parameters, each at its dotted key, and the folder where its result is kept."""

    system: str
    changes: Mapping[str, Any]
    folder: Path


def changed(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """The settings with other values at dotted keys, checked anew."""
    return Settings(with_values(settings.given, changes))


def with_values(given: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A content of params.yaml with other values at dotted keys."""
    content = dict(given)
    for key, value in changes.items():
        first, _, rest = key.partition(".")
        content[first] = with_values(content[first], {rest: value}) if rest else value
    return content


def run_of(settings: Settings, system: str) -> str:
    """The fingerprint of all parameters behind a system's result: data, split, training, prediction."""
    stages = (plan.prepare(settings), plan.split(settings), plan.evaluate(settings, system))
    return fingerprint([*map(plan.plain, stages), fingerprints.expected(settings, f"{SEGMENTERS}/{system}")], ())


def is_generated(settings: Settings) -> bool:
    """Whether the data set is a function of the settings, the seed among them: each seed then has its own."""
    return isinstance(settings.dataset, ShapesParams)


def is_current(folder: Path, settings: Settings, system: str, data_set: str | None) -> bool:
    """Whether the result kept in `folder` is of these settings and of this data set, unless that is generated."""
    found = made_of.read(folder)
    same_data = is_generated(settings) or found.get("data_set") == data_set
    whole = all((folder / name).is_file() for name in FILES)
    return whole and same_data and found.get(RUN) == run_of(settings, system)


def keep(result: Path, folder: Path, settings: Settings, system: str, data_set: str | None) -> None:
    """Copy a result that was just made, `<data>/results/<system>`; `made_of.json`, by which it is known, comes last.

    Raises:
        Problem: the result is of other parameters, or of other data than `data_set`.
    """
    found = made_of.read(result)
    wanted = {
        "training": fingerprints.expected(settings, f"{SEGMENTERS}/{system}"),
        "prediction": fingerprints.of(plan.evaluate(settings, system)),
    }
    if any(found.get(key) != value for key, value in wanted.items()):
        raise Problem(f"{result} is of other parameters than those that it was to be made by; run this again")
    if not is_generated(settings) and found.get("data_set") != data_set:
        raise Problem(
            f"{result} is of other data than the workspace: files of {settings.dataset.root} have changed since they "
            "were prepared there. Run the stage prepare there, then this again, which keeps what was trained"
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / made_of.FILE).unlink(missing_ok=True)
    for name in FILES:
        source = result.parents[1] / "split" if name == SPLIT else result
        write_atomically(folder / name, (source / name).read_bytes())
    code = code_behind.recorded(result.parents[1], settings, system)
    made_of.write(folder, found | {RUN: run_of(settings, system)} | ({CODE: code} if code else {}))


def other_code(folder: Path, settings: Settings, system: str, code: Code) -> str:
    """What must be said of the code of the result kept in `folder`; empty where it is today's, `code`."""
    found = made_of.read(folder).get(CODE)
    if found is None:
        return "unknown code"
    return "" if found == code_behind.today(settings, system, code) else "other code"


def seeds_of(data: Path, settings: Settings, system: str, data_set: str | None) -> Iterator[tuple[int, Path]]:
    """The other seeds of which a current result is kept, and where."""
    folders = (data / "results" / system / SEEDS).glob("*")
    for seed, folder in sorted((int(folder.name), folder) for folder in folders if folder.name.isdigit()):
        if seed != settings.seed and is_current(folder, changed(settings, {"seed": seed}), system, data_set):
            yield seed, folder


def perform(
    experiments: Iterable[Experiment],
    settings: Settings,
    data_set: str | None,
    run: Callable[[Experiment], Path],
    say: Callable[[str], None],
    anew: bool = False,
) -> list[str]:
    """Run what is not kept yet, one after the other, and keep each as soon as it is done.

    `run` gives the folder of the fresh result. One that fails does not stop the others. With `anew`, what is kept of
    other code than today's runs again.

    Returns:
        What failed, and why.
    """
    failed = []
    code = Code()
    for experiment in experiments:
        what = f"{experiment.system} with {', '.join(f'{key}={value}' for key, value in experiment.changes.items())}"
        try:
            own = changed(settings, experiment.changes)
            if is_current(experiment.folder, own, experiment.system, data_set):
                by = other_code(experiment.folder, own, experiment.system, code)
                if not (by and anew):
                    say(f"{what}: done before{f', by {by}; --anew runs it again' if by else ''}")
                    continue
            say(f"{what}: running")
            keep(run(experiment), experiment.folder, own, experiment.system, data_set)
            say(f"{what}: kept in {experiment.folder}")
        except Problem as problem:
            failed.append(f"{what}: {problem}")
            say(f"{what}: failed: {problem}")
    return failed


def chosen_systems(settings: Settings, names: Sequence[str]) -> list[str]:
    """The systems that are named, or all.

    Raises:
        Problem: one is not there.
    """
    for name in names:
        if name not in settings.systems:
            have = sorted(settings.systems)
            raise Problem(f"--systems: found '{name}'; params.yaml has {', '.join(have)}{hint(name, have)}")
    return list(dict.fromkeys(names)) or list(settings.systems)
