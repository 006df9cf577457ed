"""For all tests: Python looks for garbage seldom, as what torch brings is a million objects to look at."""

import gc

import pytest

THRESHOLDS = (50_000, 20, 20)
"""Objects made before the youngest are looked at; how many such looks before older ones are."""


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is imported by now stays until the end."""
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
