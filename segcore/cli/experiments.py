"""The pipeline by other values of parameters, in a folder of its own that shares DVC's cache.

Why not `dvc exp run`: in the workspace it changes params.yaml and all results, and leaves them so when it is killed;
with --temp or in a queue it keeps nothing of a run that is killed, not even checkpoints. Here a run that is killed goes
on: the folder stays until all that was wanted of it is done, with its dvc.lock and its checkpoints, and what DVC has in
its cache, such as a classifier that the change does not concern, is not made again. A copy is one run's at a time.
"""

import hashlib
import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from segcore.cli import console, held
from segcore.cli.copies import FOLDER, alone_in
from segcore.config import reading
from segcore.config.settings import Settings
from segcore.errors import Problem
from segcore.reporting.kept import Experiment, perform, with_values

CODE = ("segcore", "stages")
FEATURES = Path(".scratch/features")
"""What trunks that do not learn make of images: the same in every copy, so one pass serves all points of a curve."""
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
        listing = _said(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], self.root)
        self.files = [name for name in listing.split("\0") if name and not _is_kept(name)]
        self.cache = Path(_said([sys.executable, "-m", "dvc", "cache", "dir"], self.root).strip())

    def run(self, experiment: Experiment) -> Path:
        """Evaluate the system by the changed values, with all that this takes; gives the folder of its result.

        Waits for another run in the same copy.

        Raises:
            Problem: DVC failed; its last lines are told.
        """
        with alone_in(self.folder(experiment.changes), patiently=True):
            return self._evaluated(experiment)

    def _evaluated(self, experiment: Experiment) -> Path:
        """`run`, for those who hold the copy."""
        folder = self.folder(experiment.changes)
        given = with_values(self.given, experiment.changes)
        held.wait_for_all(folder, patiently=True)  # a stage whose DVC was killed alone works on, by the code there
        self._laid_out(folder, given)
        _repro(f"evaluate@{experiment.system}", folder, folder / ".scratch" / f"{experiment.system}.log")
        return folder / "data" / given["dataset"]["name"] / "results" / experiment.system

    def folder(self, changes: Mapping[str, Any]) -> Path:
        """Where the copy of these changes lies."""
        name = hashlib.sha256(json.dumps([self.given, changes], sort_keys=True, default=str).encode()).hexdigest()
        return self.root / FOLDER / name[:16]

    def perform(
        self, experiments: Iterable[Experiment], settings: Settings, data_set: str | None, keep_copies: bool, anew: bool
    ) -> list[str]:
        """Run what is not kept yet, see `kept.perform`; a copy goes once all that was wanted of it is kept.

        Experiments with the same changes follow each other, so that what they share is made once. Another terminal may
        want other systems by these changes, hence of the same copy: it waits until the copy is gone or left.
        """
        failed = []
        for copy, some in itertools.groupby(experiments, key=lambda experiment: self.folder(experiment.changes)):
            with alone_in(copy, patiently=True):
                missed = perform(some, settings, data_set, self._evaluated, console.say, anew)
                if not (missed or keep_copies):
                    shutil.rmtree(copy, ignore_errors=True)  # what it made is in DVC's cache
            failed += missed
        return failed

    def _laid_out(self, folder: Path, given: dict[str, Any]) -> None:
        """A fresh copy, or one of a run that was killed, which keeps what it has made but gets today's code."""
        is_new = not (folder / "params.yaml").is_file()
        for name in CODE:
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in self.files:
            made = name == "dvc.lock" or name.startswith("data/")
            if (self.root / name).is_file() and (is_new or not made):
                own = folder / name
                if own.exists() and own.samefile(self.root / name):  # a link, from when Git did not hold it
                    continue
                own.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self.root / name, own)
        _share(self.root / FEATURES, folder / FEATURES)
        (folder / ".dvc/config.local").write_text(LOCAL.format(cache=self.cache))
        self._link_what_is_named(folder, given)
        with (folder / "params.yaml").open("w") as file:  # last: by it a copy is known to be whole
            YAML(typ="safe", pure=True).dump(given, file)

    def _link_what_is_named(self, folder: Path, given: dict[str, Any]) -> None:
        """Files and folders that parameters name and Git does not hold: data sets, weights, lists."""
        data = Path("data", given["dataset"]["name"])
        for text in _texts(given):
            if not text or Path(text).is_absolute() or not (self.root / text).exists():
                continue
            place = Path(os.path.normpath(folder / text))
            if not place.is_relative_to(self.root / FOLDER):
                raise Problem(f"params.yaml names {text}, which a copy of the project cannot reach; give a whole path")
            if not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to((self.root / text).resolve())
            elif place.is_dir() and not place.is_symlink() and not _overlap(place, folder / data):
                _link_what_it_lacks(place, self.root / text)


def _share(source: Path, place: Path) -> None:
    """Put a link to a folder of the project into a copy, unless the copy has one of its own."""
    source.mkdir(parents=True, exist_ok=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_symlink():  # of when the project lay elsewhere
        place.unlink()
    if not place.exists():
        place.symlink_to(source)


def _overlap(place: Path, results: Path) -> bool:
    """Whether results lie in a folder, or it in theirs: DVC would write through links to those of the project."""
    return place.is_relative_to(results) or results.is_relative_to(place)


def _link_what_it_lacks(place: Path, source: Path) -> None:
    """Links to the files of a project's folder that are not in the copy's, as Git holds a part: lists, but no pictures.

    To files alone, in folders of their own: in a folder that is named, DVC looks into no link to another folder.
    """
    for folder, _, names in os.walk(place):
        for own in (Path(folder, name) for name in names):
            if own.is_symlink() and not own.exists():  # the project has it no longer
                own.unlink()
    for folder, below, names in os.walk(source):
        own = place / Path(folder).relative_to(source)
        own.mkdir(exist_ok=True)
        for name in (*names, *(name for name in below if Path(folder, name).is_symlink())):
            if not (own / name).exists():
                (own / name).symlink_to(Path(folder, name).resolve())


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


def _said(command: list[str], folder: Path) -> str:
    """What a command says.

    Raises:
        Problem: it fails.
    """
    done = _ended(command, folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if done.returncode:
        raise Problem(f"`{shlex.join(command)}` failed:\n{_last(done.stdout + done.stderr)}")
    return done.stdout


def _repro(target: str, copy: Path, log: Path) -> None:
    """Have DVC make a stage in a copy, from where a kill may have left it; what it says is in `log` while it runs.

    Raises:
        Problem: it fails.
    """
    command = [sys.executable, "-m", "segcore.commands.repro", target]
    with log.open("w") as file:
        done = _ended(command, copy, stdout=file, stderr=file)
    if done.returncode == 0:
        return
    try:
        told = log.read_text(errors="replace")
    except FileNotFoundError:
        raise Problem(f"`dvc repro {target}` failed: {copy} was deleted while it ran; run this again") from None
    raise Problem(f"`dvc repro {target}` failed; all it said is in {log}:\n{_last(told)}")


def _ended(command: list[str], folder: Path, **streams: Any) -> "subprocess.CompletedProcess[str]":
    """A command once it has ended, with this Python's folder first on its PATH."""
    own = {key: value for key, value in os.environ.items() if key != "DVC_ROOT"}
    own["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), own.get("PATH", "")])
    try:
        return subprocess.run(command, cwd=folder, env=own, text=True, **streams)
    except OSError as error:
        raise Problem(f"{command[0]} could not be started ({error.filename}: {error.strerror})") from None


def _last(said: str) -> str:
    return "\n".join(said.strip().splitlines()[-8:])
