"""Memory that a process keeps for its next tensors."""

import os
import subprocess
import sys

import pytest

from segcore import memory
from tests.devkit import PROJECT


@pytest.mark.parametrize(
    ("most", "set_to"),
    [
        (memory.KEPT, [memory.KEPT, "others", "others"]),
        (memory.KEPT_AT_LEAST, [memory.KEPT, memory.KEPT_AT_LEAST, "others", "others"]),
        (0, [memory.KEPT, memory.KEPT_AT_LEAST]),
    ],
)
def test_a_glibc_that_takes_less_is_asked_for_less(
    most: int, set_to: list[int | str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that takes nothing is left as it is: other settings alone would make it slower."""
    asked: list[int | str] = []

    class Libc:
        @staticmethod
        def mallopt(what: int, value: int) -> int:
            asked.append(value if what == memory.MMAP_THRESHOLD else "others")
            return int(what != memory.MMAP_THRESHOLD or value <= most)

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: Libc)
    memory.keep()
    assert asked == set_to


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_a_process_that_keeps_memory_takes_no_pages_anew() -> None:
    lines = (
        "import resource, segcore.memory as memory",
        "memory.keep()",
        "piece = bytearray(3 * memory.KEPT // 4); del piece",
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt",
        "for _ in range(3): piece = bytearray(3 * memory.KEPT // 4); del piece",
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)",
    )
    told = subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, capture_output=True, text=True).stdout
    assert int(told) < 1000  # thousands a piece otherwise


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
@pytest.mark.parametrize("told", [{}, {"MALLOC_MMAP_THRESHOLD_": "65536"}])
def test_a_stage_keeps_memory_unless_the_environment_says_otherwise(told: dict[str, str]) -> None:
    """As `make` does, whose environment stays as it is; `dvc repro` alone starts them without."""
    lines = (
        "import resource",
        "from segcore.cli import command",
        "def main() -> None:",
        "    piece = bytearray(2**24); del piece",
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt",
        "    for _ in range(3): piece = bytearray(2**24); del piece",
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)",
        "command.start(main)",
    )
    others = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    asked = [sys.executable, "-c", "\n".join(lines)]
    said = subprocess.run(asked, check=True, capture_output=True, text=True, env=others | told, cwd=PROJECT).stdout
    assert (int(said) < 1000) == (not told)
