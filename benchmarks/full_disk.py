"""Let the disk run full under the whole pipeline: `python -m benchmarks.full_disk`, Linux, some minutes.

The pipeline of `benchmarks.kills` writes its results into a file system of its own that is too small, by another amount
each time. The run must end with one message that says so and no traceback; once there is room, `make all` must go on by
itself, run no finished stage again, and make every file as it is made with room. Needs no rights: it starts itself in a
namespace (`unshare`) where it may mount memory as a disk.
"""

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.kills import ALWAYS, Pipeline, Round, run

INSIDE = "SEGCORE_FULL_DISK"
ROOM = 2**30


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--disks", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if INSIDE not in os.environ:
        if shutil.which("unshare") is None:
            print("not measured: this system has no `unshare`")
            return 0
        command = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-m", "benchmarks.full_disk"]
        return subprocess.run([*command, *sys.argv[1:]], env=os.environ | {INSIDE: "1"}).returncode
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="full-disk-") as place:
        pipeline = Pipeline(Path(place) / "project")
        whole = Round()
        if not run(pipeline, Path(place) / "log", whole, lambda _: False):
            print(*whole.faults, sep="\n")
            return 1
        expected, data = pipeline.result(), pipeline.folder / "data/shapes"
        needed = sum(file.stat().st_blocks * 512 for file in data.rglob("*") if file.is_file())
        print(f"with room: {len(whole.finished)} stages, {len(expected)} files, {needed / 1e6:.1f} MB", flush=True)
        shares = [(number + rng.random()) / options.disks for number in range(options.disks)]
        faults = [fault for share in shares for fault in one_disk(pipeline, int(share * needed), expected)]
    print(f"{options.disks} disks, {len(faults)} faults (bar: 0)")
    return 1 if faults else 0


def one_disk(pipeline: Pipeline, size: int, expected: dict[str, str]) -> list[str]:
    """From nothing, on a disk of `size` bytes until it is full, then with room; what was not as it should be."""
    pipeline.afresh()
    data, log = pipeline.folder / "data/shapes", pipeline.folder.parent / "log"
    data.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "full", str(data)], check=True)
    try:
        this = Round()
        run(pipeline, log, this, lambda _: False)
        said = log.read_text(errors="replace")
        started = re.findall(r"Running stage '(.+)':", said)
        message = next((line for line in said.splitlines() if "No space left" in line), "")
        faults = [*["ended well on a full disk"] * (not this.faults), *["a traceback"] * ("Traceback" in said)]
        faults += [f"no message: {said[-1500:]}"] * (not message)
        subprocess.run(["mount", "-o", f"remount,size={ROOM}", str(data)], check=True)
        after = Round(finished={*started[:-1]} - ALWAYS)
        run(pipeline, log, after, lambda _: False)
        found = pipeline.result()
        names = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        faults += [*after.faults, *[f"not as with room: {', '.join(names)}"] * bool(names)]
    finally:
        subprocess.run(["umount", str(data)], check=True)
    print(f"{size:,} bytes, full in {started[-1] if started else 'nothing'}: {message.strip()}: {faults or 'right'}")
    return faults


if __name__ == "__main__":
    sys.exit(main())
