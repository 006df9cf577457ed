"""What is wrong is said by the core, which stage mends it by the command line."""

import pickle
from pathlib import Path

import pytest

from segcore.cli.command import advised
from segcore.errors import Problem, Problems
from tests.devkit import PROJECT

ROOMS = ("config", "data", "evaluation", "importers", "localisation", "models", "networks", "training")


def test_the_command_line_adds_the_stage_to_run() -> None:
    assert advised(Problem("a.txt is odd; mend it")) == "a.txt is odd; mend it"
    assert advised(Problem("a.txt is odd", made_by="split")) == "a.txt is odd; run `dvc repro split`"
    several = Problems("two files are odd:", ["a.txt", "b.txt"], made_by="split")
    assert advised(several) == "two files are odd:\n  - a.txt\n  - b.txt\nrun `dvc repro split`"


def test_a_problem_comes_whole_out_of_another_process() -> None:
    again = pickle.loads(pickle.dumps(Problem("a.txt is odd", made_by="split")))
    assert (str(again), again.made_by) == ("a.txt is odd", "split")


@pytest.mark.parametrize("file", [f for room in ROOMS for f in sorted((PROJECT / "segcore" / room).rglob("*.py"))])
def test_the_core_names_no_command_of_the_pipeline(file: Path) -> None:
    assert "dvc repro" not in file.read_text()
