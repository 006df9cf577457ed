"""Run every benchmark of this folder, one after the other: `python -m benchmarks`, which is what `make bench` does.

Each runs in a process of its own, so that none measures the memory or the threads that another left behind. Ends with
exit code 1 if a benchmark failed or missed its bar. The demo under other instruction sets (`everywhere`), the kills of
the pipeline (`kills`), the tables of trunks (`trunks`) and of exports (`exporting`), the choice of images (`next`,
`next_frozen`) and the manifest of a million images (`manifest`, with its tasks) take too long to be among them, and
`gpu` is for a GPU.
"""

import subprocess
import sys
from pkgutil import iter_modules

import benchmarks

TOO_LONG = (
    *("everywhere", "exporting", "gpu", "kills"),
    *("manifest", "manifest_task", "next", "next_frozen", "trunks"),
)


def main() -> int:
    found = (module.name for module in iter_modules(benchmarks.__path__) if not module.ispkg)
    names = sorted(name for name in found if name not in ("__main__", *TOO_LONG))
    missed = []
    for name in names:
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"]).returncode:
            missed.append(name)
        print()
    print(f"missed or failed: {', '.join(missed)}" if missed else "every bar is met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
