"""For all tests: figures are written quickly, and Python looks for garbage seldom, as what torch brings is a million
objects to look at each time."""

import gc
from pathlib import Path

import jaxtyping
import pytest

from tests import quick


def of_arrays() -> list[str]:
    """The modules that write down shapes. All they are called with is checked; the others are left to the type checker,
    as checking every call of them is a tenth of the time."""
    top = Path(__file__).parents[1]
    files = (path for path in (top / "segcore").rglob("*.py") if "from jaxtyping import" in path.read_text("utf-8"))
    return [".".join(path.relative_to(top).with_suffix("").parts) for path in files]


jaxtyping.install_import_hook(of_arrays(), "beartype.beartype")
quick.pngs()
gc.set_threshold(50_000, 20, 20)


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is imported by now stays until the end."""
    gc.freeze()
