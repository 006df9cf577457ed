"""The benchmarks run on what the code is now; what they measure is for `make bench`."""

from importlib import import_module
from pkgutil import iter_modules

import pytest

import benchmarks
from benchmarks import inference

STARTED = sorted(m.name for m in iter_modules(benchmarks.__path__) if not m.ispkg and m.name != "__main__")


@pytest.mark.parametrize("name", STARTED)
def test_a_benchmark_can_be_started(name: str) -> None:
    assert callable(import_module(f"benchmarks.{name}").main)


def test_one_forward_per_label_gives_the_scores_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides of the comparison of `benchmarks.inference`, at a size that costs nothing."""
    monkeypatch.setattr(inference, "SIDE", 224)
    monkeypatch.setattr(inference, "TURNS", 1)
    _, difference = inference.compared("small", 1 / 16)
    assert difference < 1e-4
