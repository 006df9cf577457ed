"""`dvc repro` with nothing to do, in this project as it is: `python -m benchmarks.repro`.

The pipeline must have run; where something has changed since, this says so and measures nothing.
"""

import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

PROJECT = Path(__file__).parents[1]
BAR_SECONDS = 5.0
RUNS = 3
ALWAYS = "outside_files"
"""The stage that runs each time, to see what no stage makes."""


def main() -> int:
    status = dvc("status", "--json")
    changed = [*json.loads(status.stdout).keys() - {ALWAYS}] if status.returncode == 0 else [status.stderr.strip()]
    if changed:
        print("not measured: something has changed since the pipeline ran, or it never did; run `dvc repro` first")
        print(f"  {min(changed)} ...")
        return 0
    runs = [timed_repro() for _ in range(RUNS)]
    if any(set(re.findall(r"Running stage '(.+)':", output)) != {ALWAYS} for _, output in runs):
        print(f"`dvc repro` had something to do after all:\n{runs[0][1]}")
        return 1
    median, slowest = statistics.median(seconds for seconds, _ in runs), max(seconds for seconds, _ in runs)
    print(f"`dvc repro` with nothing to do, {RUNS} times:")
    print(f"  median {median:.2f} s, slowest {slowest:.2f} s (bar: <= {BAR_SECONDS:.0f} s)")
    return 0 if median <= BAR_SECONDS else 1


def timed_repro() -> tuple[float, str]:
    begin = time.perf_counter()
    ended = dvc("repro")
    return time.perf_counter() - begin, ended.stdout + ended.stderr


def dvc(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "dvc", *command], cwd=PROJECT, capture_output=True, text=True)


if __name__ == "__main__":
    sys.exit(main())
