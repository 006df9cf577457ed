"""Kill the whole pipeline, again and again, and see that `make all` goes on: `python -m benchmarks.kills`.

A small pipeline runs in a clone of its own, once without a kill and then until `--random` kills at random moments and
`--lock` kills aimed at the writing of `dvc.lock` have hit it. Whatever a kill leaves, the next `make all` must go on by
itself, no stage that had finished may run again, and in the end `dvc.lock` and every file of the data must be as
without kills. SIGKILL goes to the whole process group, so nobody can clean up. The 80 kills take about an hour.
"""

import argparse
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ruamel.yaml import YAML

from tests.devkit import PROJECT, changed
from tests.tiny import tiny_params

SYSTEM = "dsrg"
WRITING = 0.15
"""Seconds within which DVC has written the lock."""

ALWAYS = {"outside_files", "report"}
"""What always runs; `make report` starts the second by force, as DVC knows nothing of the page."""


@dataclass
class Round:
    """One way through the pipeline, with as many kills as it met."""

    kills: list[str] = field(default_factory=list)
    finished: set[str] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)


class Pipeline:
    """A clone of the project with two systems, small enough to run in a minute."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=PROJECT, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        for name in filter(None, listed.split("\0")):
            is_data = name.startswith("data/") and not name.startswith(("data/embedded/", "data/.gitignore"))
            if (PROJECT / name).is_file() and not is_data and name != "dvc.lock":
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(PROJECT / name, folder / name)
        self.params()
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("GIT_", "DVC_", "MAKE"))},
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            "DVC_SITE_CACHE_DIR": str(folder.parent / "site"),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        names = {f"GIT_{who}_{what}": "kills" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        for arguments in (["init"], ["add", "--all"], ["commit", "--message", "Small"]):
            command = ["git", arguments[0], *["--quiet"] * (arguments[0] != "add"), *arguments[1:]]
            subprocess.run(command, cwd=folder, env=self.environment | names, check=True)

    def params(self) -> None:
        """Write the parameters of the small pipeline."""
        whole = changed({})
        small = {"classes": 3, "train_images": 12, "val_images": 4, "size": 64, "max_objects": 2}
        dataset = whole["dataset"] | small
        entry = whole["systems"][SYSTEM]
        labels, start = (entry[key].split("/")[1] for key in ("labels", "start"))
        path = tiny_params(self.folder / "params.yaml", dataset=dataset)
        content = changed({}, path)
        content["systems"] = {SYSTEM: content["systems"][SYSTEM]}
        content["pseudo_labels"] = {labels: content["pseudo_labels"][labels]}
        content["classifiers"] = {start: content["classifiers"][start]}
        YAML().dump(content, path)

    def start(self, log: Path) -> subprocess.Popen[bytes]:
        command = ["make", "all", "READY=", f"BIN={Path(sys.executable).parent}"]
        with log.open("wb") as file:
            return subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=file, stderr=file, start_new_session=True
            )

    def afresh(self) -> None:
        """As it was before the first run."""
        for name in (".scratch", ".dvc/cache", ".dvc/tmp", "../site"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        subprocess.run(["git", "reset", "--quiet", "--hard"], cwd=self.folder, check=True)
        subprocess.run(["git", "clean", "-qfdx"], cwd=self.folder, check=True)

    def result(self) -> dict[str, str]:
        """The sum of each file that a run makes, but the page, which tells times."""
        files = [self.folder / "dvc.lock", *sorted((self.folder / "data").rglob("*"))]
        return {
            str(file.relative_to(self.folder)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in files
            if file.is_file() and file.name != "index.html"
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--random", type=int, default=60)
    parser.add_argument("--lock", type=int, default=20)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 100_000)
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        pipeline = Pipeline(Path(folder) / "project")
        begin = time.monotonic()
        whole = Round()
        ended = run(pipeline, Path(folder) / "log", whole, lambda *_: False)
        seconds = time.monotonic() - begin
        expected = pipeline.result()
        print(f"without a kill: {seconds:.0f} s, {len(whole.finished)} stages, {len(expected)} files", flush=True)
        if not ended:
            print(*whole.faults, sep="\n")
            return 1
        rounds: list[Round] = []
        for count, aim in ((options.random, at_random), (options.lock, at_the_lock)):
            left = count
            while left > 0:
                rounds.append(one_round(pipeline, Path(folder), left, aim, rng, seconds, expected))
                left -= len(rounds[-1].kills)
    faults = [fault for one in rounds for fault in one.faults]
    print(f"{sum(len(one.kills) for one in rounds)} kills in {len(rounds)} rounds, {len(faults)} faults")
    return 1 if faults else 0


Aim = Callable[[random.Random, float, Path], Callable[[float], str]]


def at_random(rng: random.Random, seconds: float, lock: Path) -> Callable[[float], str]:
    """A kill at a moment between the start and half of what a whole run takes."""
    moment = rng.uniform(0.0, 0.5 * seconds)
    return lambda passed: f"at {moment:.1f} s" if passed >= moment else ""


def at_the_lock(rng: random.Random, seconds: float, lock: Path) -> Callable[[float], str]:
    """A kill while the lock is written: up to `WRITING` seconds after one of the next times that it changes."""
    skipped, delay = rng.randrange(4), rng.uniform(0.0, WRITING)
    seen, changes, due = _version(lock), 0, float("inf")

    def hit(passed: float) -> str:
        nonlocal seen, changes, due
        now = _version(lock)
        if now != seen and due == float("inf") and (now[0] == 0 or now[0] < seen[0]):
            changes += 1
            due = passed + delay if changes > skipped else due
        seen = now
        return f"{delay:.2f} s after the lock was opened, {now[0]} bytes" if passed >= due else ""

    return hit


def _version(file: Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except FileNotFoundError:
        return (0, 0)
    return (status.st_size, status.st_mtime_ns)


def one_round(
    pipeline: Pipeline, folder: Path, most: int, aim: Aim, rng: random.Random, seconds: float, expected: dict[str, str]
) -> Round:
    """From nothing to the end, killed up to `most` times on the way."""
    pipeline.afresh()
    this = Round()
    while True:
        kill = aim(rng, seconds, pipeline.folder / "dvc.lock") if len(this.kills) < most else lambda _: ""
        if run(pipeline, folder / "log", this, kill) or this.faults:
            break
    found = pipeline.result()
    names = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
    this.faults += [f"not as without kills: {', '.join(names)}"] * bool(names)
    print(f"{len(this.kills)} kills: {'; '.join(this.kills)}: {this.faults or 'right'}", flush=True)
    return this


def run(pipeline: Pipeline, log: Path, this: Round, kill: Callable[[float], object]) -> bool:
    """Run `make all` until it ends, or is killed; whether it ended."""
    begin = time.monotonic()
    process = pipeline.start(log)
    while process.poll() is None:
        if how := kill(time.monotonic() - begin):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            this.kills.append(str(how))
            break
        time.sleep(0.002)
    killed = process.returncode == -signal.SIGKILL
    text = log.read_text(errors="replace")
    if not killed and process.returncode:
        this.faults.append(f"make all ended with {process.returncode}: {text[-2000:]}")
    started = re.findall(r"Running stage '(.+)':", text)
    this.faults += [f"{name} ran again" for name in started if name in this.finished - ALWAYS]
    marked = {file.stem for file in (pipeline.folder / ".scratch/pipeline/ended").glob("*.json")}
    this.finished |= {*(started if not killed else started[:-1]), *(marked & {*started[-1:]})}
    return not killed


if __name__ == "__main__":
    sys.exit(main())
