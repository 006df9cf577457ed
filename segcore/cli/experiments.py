"""The pipeline by other values of parameters, in a folder of its own that shares DVC's cache.

Why not `dvc exp run`: in the workspace it changes params.yaml and all results, and leaves them so when it is killed;
with --temp or in a queue it keeps nothing of a run that is killed, not even checkpoints. Here a run that is killed goes
on: the folder stays until all that was wanted of it is done, with its dvc.lock and its checkpoints, and what DVC has in
its cache, such as a classifier that the change does not concern, is not made again.
"""

import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from segcore.cli import console
from segcore.config import reading
from segcore.config.settings import Settings
from segcore.errors import Problem
from segcore.reporting.kept import Experiment, perform, with_values

FOLDER = Path(".scratch/experiments")
CODE = ("segcore", "stages")
LOCAL = """[core]
    no_scm = true
    autostage = false
    analytics = false
[cache]
    dir = {cache}
"""
"""The copy is no Git repository, and what it makes goes to the cache of the project."""


class Copies:
    """Copies of the project, one for each set of changed values; `root` is the project, a Git checkout.

    Raises:
        Problem: it is none, or DVC does not know it.
    """

    def __init__(self, root: Path, params: Path) -> None:
        self.root = root.resolve()
        self.given = reading.read(params)
        listing = _run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], self.root)
        self.files = [name for name in listing.split("\0") if name and not _is_kept(name)]
        self.cache = Path(_run([sys.executable, "-m", "dvc", "cache", "dir"], self.root).strip())

    def run(self, experiment: Experiment) -> Path:
        """Evaluate the system by the changed values, with all that this takes; gives the folder of its result.

        Raises:
            Problem: DVC failed; its last lines are told.
        """
        folder = self.folder(experiment.changes)
        given = with_values(self.given, experiment.changes)
        self._laid_out(folder, given)
        command = [sys.executable, "-m", "dvc", "repro", f"evaluate@{experiment.system}"]
        _run(command, folder, log=folder / ".scratch" / f"{experiment.system}.log")
        return folder / "data" / given["dataset"]["name"] / "results" / experiment.system

    def folder(self, changes: Mapping[str, Any]) -> Path:
        """Where the copy of these changes lies."""
        name = hashlib.sha256(json.dumps([self.given, changes], sort_keys=True, default=str).encode()).hexdigest()
        return self.root / FOLDER / name[:16]

    def perform(
        self, experiments: Iterable[Experiment], settings: Settings, data_set: str | None, keep_copies: bool
    ) -> list[str]:
        """Run what is not kept yet, see `kept.perform`; a copy goes once all that was wanted of it is kept.

        Experiments with the same changes follow each other, so that what they share is made once.
        """
        failed = []
        for _, some in itertools.groupby(experiments, key=lambda experiment: self.folder(experiment.changes)):
            of_one_copy = list(some)
            missed = perform(of_one_copy, settings, data_set, self.run, console.say)
            if not (missed or keep_copies):
                self.remove(of_one_copy[0].changes)
            failed += missed
        return failed

    def remove(self, changes: Mapping[str, Any]) -> None:
        """Take the copy away; what it made is in DVC's cache."""
        shutil.rmtree(self.folder(changes), ignore_errors=True)

    def _laid_out(self, folder: Path, given: dict[str, Any]) -> None:
        """A fresh copy, or one of a run that was killed, which keeps what it has made but gets today's code."""
        is_new = not (folder / "params.yaml").is_file()
        for name in CODE:
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in self.files:
            made = name == "dvc.lock" or name.startswith("data/")
            if (self.root / name).is_file() and (is_new or not made):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self.root / name, folder / name)
        (folder / ".scratch").mkdir(parents=True, exist_ok=True)
        (folder / ".dvc/config.local").write_text(LOCAL.format(cache=self.cache))
        self._link_what_is_named(folder, given)
        with (folder / "params.yaml").open("w") as file:  # last: by it a copy is known to be whole
            YAML(typ="safe", pure=True).dump(given, file)

    def _link_what_is_named(self, folder: Path, given: dict[str, Any]) -> None:
        """Files and folders that parameters name and Git does not hold: data sets, weights, lists."""
        for text in _texts(given):
            if not text or Path(text).is_absolute() or not (self.root / text).exists():
                continue
            place = Path(os.path.normpath(folder / text))
            if not place.is_relative_to(self.root / FOLDER):
                raise Problem(f"params.yaml names {text}, which a copy of the project cannot reach; give a whole path")
            if not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to((self.root / text).resolve())


def _is_kept(name: str) -> bool:
    """Results of other runs, which no stage but the report reads."""
    parts = name.split("/")
    return parts[0] == "data" and ("seeds" in parts[3:] or parts[2:3] == ["curve"])


def _texts(content: Any) -> Iterator[str]:
    if isinstance(content, Mapping):
        content = list(content.values())
    if isinstance(content, list):
        for value in content:
            yield from _texts(value)
    elif isinstance(content, str):
        yield content


def _run(command: list[str], folder: Path, log: Path | None = None) -> str:
    """What a command says; with `log`, what it says is also there while it runs.

    Raises:
        Problem: it fails.
    """
    own = {key: value for key, value in os.environ.items() if key != "DVC_ROOT"}
    python = os.pathsep.join([str(Path(sys.executable).parent), own.get("PATH", "")])
    try:
        if log is None:
            done = subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True)
            said, told = done.stdout, done.stdout + done.stderr
        else:
            with log.open("w") as file:
                done = subprocess.run(command, cwd=folder, env=own | {"PATH": python}, stdout=file, stderr=file)
            said = told = log.read_text()
    except OSError as error:
        raise Problem(f"{command[0]} could not be started ({error.strerror})") from None
    if done.returncode:
        last = "\n".join(told.strip().splitlines()[-8:])
        where = f"; all it said is in {log}" if log else ""
        raise Problem(f"`{' '.join(['dvc' if 'dvc' in command else 'git', *command[-2:]])}` failed{where}:\n{last}")
    return said
