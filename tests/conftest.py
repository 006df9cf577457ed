"""For all tests: Python looks for garbage seldom, as what torch brings is a million objects to look at each time."""

import gc

import pytest

gc.set_threshold(50_000, 20, 20)


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is imported by now stays until the end."""
    gc.freeze()
