"""What `make` would run, without running it."""

import re
import subprocess
from pathlib import Path

from segcore.config import reading
from tests.devkit import PARAMS

PROJECT = Path(__file__).parents[1]


def planned(*arguments: str, folder: Path = PROJECT) -> str:
    # `make test` runs this file: a make inside a make names the folder it enters, and that of a test holds "index".
    command = ["make", "--dry-run", "--no-print-directory", "--file", str(PROJECT / "Makefile"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def test_the_demo_runs_systems_that_are_there() -> None:
    said = planned("demo", "READY=")
    systems = re.findall(r"evaluate@(\w+)", said)
    assert systems
    assert {*systems} <= {*reading.read(PARAMS)["systems"]}
    assert "--single-item report" in said
    assert "segcore.commands.show" in said


def test_torch_comes_from_an_index_of_choice_at_its_pinned_version(tmp_path: Path) -> None:
    requirements = (PROJECT / "requirements.txt").read_text()
    for name in ("requirements.txt", "constraints.txt"):
        (tmp_path / name).write_text((PROJECT / name).read_text())
    said = planned("show", "TORCH_INDEX=https://index/cpu", folder=tmp_path)
    first, *rest = [line for line in said.splitlines() if "uv pip install" in line]
    uv, pip = first.split("||")
    assert uv.partition("--no-deps")[2].strip(" ;}") == pip.partition("--no-deps")[2].strip(" ;}")
    assert '--index-url "https://index/cpu"' in uv
    pinned = re.findall(r"torch\w*==[^\s;]+", uv)
    assert [pin.split("==")[0] for pin in pinned] == ["torch", "torchvision"]
    assert all(pin in requirements.splitlines() for pin in pinned)
    assert len(rest) == 1
    assert "--index-url" not in planned("show", folder=tmp_path)


def test_a_profile_is_named_by_the_command_that_lays_it_out() -> None:
    assert 'segcore.commands.use_profile --profile "voc-mini"' in planned("use", "PROFILE=voc-mini", "READY=")


def test_a_report_may_tell_what_changed_since_a_commit() -> None:
    assert 'segcore compare "HEAD~1"' in planned("report", "COMPARE=HEAD~1", "READY=")
    assert "segcore compare" not in planned("report", "READY=")
