"""The demo under other instruction sets and thread counts: `python -m benchmarks.everywhere`, six minutes a variant.

torch and oneDNN are held to older instructions by their environment variables, which rounds sums in another order. The
demo is told to say the same thing on every machine: the same order of rows, each mIoU within 1.5 points. Every variant
runs in a clone of the last commit, from nothing.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).parents[1]
SYSTEMS = ("decouplednet", "decouplednet_str", "ficklenet", "ficklenet_semi")
BAR_POINTS, BAR_SECONDS, BAR_MEGABYTES = 1.5, 360.0, 3000.0
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
VARIANTS: dict[str, dict[str, str]] = {
    "as it is, 2 threads": {"OMP_NUM_THREADS": "2"},
    "AVX2, 2 threads": AVX2 | {"OMP_NUM_THREADS": "2"},
    "AVX2, 1 thread": AVX2 | {"OMP_NUM_THREADS": "1"},
    "as it is, 1 thread": {"OMP_NUM_THREADS": "1"},
}


def main() -> int:
    chosen = [name for name in VARIANTS if not sys.argv[1:] or any(word in name for word in sys.argv[1:])]
    scores = {name: measured(name) for name in chosen}
    orders = {tuple(sorted(SYSTEMS, key=lambda s: -scores[name][s])) for name in chosen}
    spread = {s: max(scores[n][s] for n in chosen) - min(scores[n][s] for n in chosen) for s in SYSTEMS}
    print(
        f"orders of rows: {len(orders)} (bar: 1); widest spread {max(spread.values()):.2f} points (bar: {BAR_POINTS})"
    )
    return 0 if len(orders) == 1 and max(spread.values()) <= BAR_POINTS else 1


def measured(name: str) -> dict[str, float]:
    """mIoU of each system, in points, under a variant's environment."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "segcore"
        subprocess.run(["git", "clone", "--quiet", str(PROJECT), str(clone)], check=True)
        shutil.rmtree(clone / "data/shapes", ignore_errors=True)
        (clone / "dvc.lock").unlink(missing_ok=True)
        begin = time.perf_counter()
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # the stages call `python`
        environment = os.environ | {"PATH": path} | VARIANTS[name]
        command = ["make", "demo", f"BIN={Path(sys.executable).parent}", "READY="]  # in this environment, as it is
        subprocess.run(command, cwd=clone, env=environment, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - begin
        timings = [json.loads(file.read_text()) for file in (clone / ".scratch/timings").rglob("*.json")]
        results = clone / "data/shapes/results"
        found = {s: 100 * json.loads((results / s / "metrics.json").read_text())["mean_iou"] for s in SYSTEMS}
    peak = max(timing["peak_memory_mb"] for timing in timings)
    told = ", ".join(f"{system} {score:.2f}" for system, score in found.items())
    print(f"{name}: {told}; {seconds:.0f} s (bar on two old cores: {BAR_SECONDS:.0f}), {peak:,} MB", flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
