"""The package: what it brings, what it needs, and that it works where the project is not."""

import os
import re
import subprocess
import tomllib
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

from segcore import sources
from tests import warm
from tests.devkit import PROJECT


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as it lies in an environment."""
    folder = tmp_path_factory.mktemp("wheel")
    (wheel,) = WheelBuilder(str(PROJECT)).build(directory=str(folder), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_it_needs_what_the_project_runs_with() -> None:
    lines = (PROJECT / "requirements.txt").read_text().partition("# Tests and checks.")[0].splitlines()
    pins = [line.partition("#")[0].strip() for line in lines]
    content = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    assert content["project"]["dependencies"] == [pin for pin in pins if pin]
    builder = content["build-system"]["requires"]
    assert {*builder} <= {*(PROJECT / "requirements.txt").read_text().split()}


def test_it_holds_all_code_once_and_what_projects_are_made_of(unpacked: Path) -> None:
    held = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*.py")}
    own = {path.relative_to(PROJECT).as_posix() for path in (PROJECT / "segcore").rglob("*.py")}
    assert held == own | {f"segcore/stages/{path.name}" for path in (PROJECT / "stages").glob("*.py")}
    template = unpacked / "segcore/template"
    assert (template / "dvc.yaml").read_bytes() == (PROJECT / "dvc.yaml").read_bytes()
    profiles = {path.name: path.read_bytes() for path in (PROJECT / "profiles").glob("*.yaml")}
    assert {path.name: path.read_bytes() for path in (template / "profiles").iterdir()} == profiles
    assert (unpacked / "segcore/reporting/templates/report.html.j2").is_file()
    page = {path.name: path.read_bytes() for path in (PROJECT / "segcore/serving/static").iterdir()}
    assert {path.name: path.read_bytes() for path in (unpacked / "segcore/serving/static").iterdir()} == page


def test_it_works_where_the_project_is_not(unpacked: Path, tmp_path: Path) -> None:
    def run(folder: Path, *command: str) -> str:
        own = {key: value for key, value in os.environ.items() if not key.startswith(("GIT_", "DVC_"))}
        environment = own | {"PYTHONPATH": str(unpacked), "OMP_NUM_THREADS": "1", "PATH": warm.path()}
        done = subprocess.run(["python", *command], cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    where = run(tmp_path, "-c", "import segcore, segcore.projects as p; print(segcore.__file__, p.stamp()['version'])")
    version = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
    assert where.split() == [str(unpacked / "segcore/__init__.py"), version]
    run(tmp_path, "-m", "segcore", "new", "cups", "--systems", "deeplab")
    run(tmp_path / "cups", "-m", "segcore", "stage", "check_params", "--data", "data/own")
    assert (tmp_path / "cups/data/own/params/evaluate/deeplab.json").is_file()


def test_the_code_has_one_name_in_a_checkout_and_in_a_package(unpacked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = {name: path.read_bytes() for name, path in sources.files().items()}
    monkeypatch.setattr(sources, "PACKAGE", unpacked / "segcore")
    there = {name: path.read_bytes() for name, path in sources.files().items()}
    assert here == there
    assert any(re.match(r"stages/\w+\.py", name) for name in there)
