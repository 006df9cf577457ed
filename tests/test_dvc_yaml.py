"""dvc.yaml tells the truth: stages declare the code they import and the parameters they read, no more and no less."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from dvc.dependency.param import ParamsDependency
from dvc.repo import Repo
from dvc.stage import PipelineStage

from segcore import systems
from segcore.config import reading

PROJECT = Path(__file__).parents[1]
STAGES = {str(stage.name): stage for stage in Repo(str(PROJECT)).index.stages if isinstance(stage, PipelineStage)}
SCRIPTS = sorted({name.partition("@")[0] for name in STAGES})
SECTIONS = set(reading.Settings.KEYS)

CHECKS_ALL_SYSTEMS = ("stages/run.py", "segcore/systems/__init__.py")
"""The one import that is no dependency: every stage checks the parameters of all systems first, which changes none of
its results, and adding a system must not run everything again."""

OF_A_SYSTEM = ("train_segmenter", "evaluate")
"""The stages that load the module of a system."""

ONLY_A_NAME = {("evaluate", "systems")}
"""What a stage reads of its settings without depending on it: the model carries its own parameters."""


def declared(name: str) -> set[str]:
    """The source files that dvc.yaml gives a stage as dependencies."""
    return {str(dep.def_path) for dep in STAGES[name].deps if str(dep.def_path).endswith(".py")}


def sections_of(name: str) -> set[str]:
    keys = [key for dep in STAGES[name].deps if isinstance(dep, ParamsDependency) for key in dep.params]
    return {key.partition(".")[0] for key in keys}


def parsed(file: str) -> ast.Module:
    return ast.parse((PROJECT / file).read_text())


@cache
def imports(file: str) -> frozenset[str]:
    """The dotted names that a file imports, at its top or inside of functions."""
    names: set[str] = set()
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            assert node.module is not None
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def file_of(module: str) -> str | None:
    """The project's file of a module, without the empty roots of the packages."""
    base = module.replace(".", "/")
    found = next((f for f in (f"{base}.py", f"{base}/__init__.py") if (PROJECT / f).is_file()), None)
    return None if found in ("segcore/__init__.py", "stages/__init__.py") else found


def reached(file: str, seen: set[str]) -> set[str]:
    """All files of the project that loading `file` loads, itself included."""
    seen.add(file)
    for module in imports(file):
        parents = [module.rsplit(".", count)[0] for count in range(module.count(".") + 1)]
        for found in filter(None, map(file_of, parents)):
            if found not in seen and (file, found) != CHECKS_ALL_SYSTEMS:
                reached(found, seen)
    return seen


def module_of(name: str) -> str:
    """The module of the system of a stage `<script>@<system>`."""
    return reading.load(PROJECT / "params.yaml").systems[name.partition("@")[2]].module


def needed(name: str) -> set[str]:
    """The source files that a stage imports, its system's module among them.

    Pseudo-labels from a segmenter need its module, too, which a template cannot name; they depend on the segmenter,
    and so run again when a change of its module trains another one.
    """
    script = name.partition("@")[0]
    files = reached(f"stages/{script}.py", set())
    if script in OF_A_SYSTEM:
        reached(f"segcore/systems/{module_of(name)}.py", files)
    return files


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_declares_the_code_that_it_imports(name: str) -> None:
    assert needed(name) - declared(name) == set(), "dvc.yaml lacks these"


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_code_is_declared_in_vain(script: str) -> None:
    """Over all its variants: what only one system needs is declared for all, as lists cannot be templated.

    Parameters that name few of the systems change nothing: what any of them needs may be declared.
    """
    variants = [name for name in STAGES if name.partition("@")[0] == script]
    used = set().union(*map(needed, variants))
    if script in OF_A_SYSTEM:
        for module in systems.names():
            reached(f"segcore/systems/{module}.py", used)
    assert set().union(*map(declared, variants)) - used == set(), "no variant of this stage imports these"


def test_reading_the_imports_finds_what_an_interpreter_loads() -> None:
    name = next(name for name in STAGES if name.startswith("evaluate@"))
    code = (
        f"import sys, segcore.systems.{module_of(name)}, stages.evaluate\n"
        "names = ('segcore.', 'stages.')\n"
        "print(*(m.__file__ for n, m in sys.modules.items() if n.startswith(names)), sep='\\n')"
    )
    listing = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    loaded = {Path(line).relative_to(PROJECT).as_posix() for line in listing.stdout.split()}
    assert loaded == needed(name)


@pytest.mark.parametrize("package", ["segcore", "stages"])
def test_the_roots_of_the_packages_are_empty(package: str) -> None:
    """They are loaded by everything and declared nowhere."""
    body = parsed(f"{package}/__init__.py").body
    assert all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body)


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_says_what_it_is_for(name: str) -> None:
    assert STAGES[name].desc


def test_every_section_of_the_parameters_is_used() -> None:
    assert set().union(*map(sections_of, STAGES)) == SECTIONS


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_stage_depends_on_the_sections_that_it_reads(script: str) -> None:
    name = next(name for name in STAGES if name.partition("@")[0] == script)
    read = {
        node.attr
        for node in ast.walk(parsed(f"stages/{script}.py"))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "settings"
    }
    only_names = {section for stage, section in ONLY_A_NAME if stage == script}
    assert (read & SECTIONS) - only_names - sections_of(name) == set(), "dvc.yaml's params lack these"


@pytest.mark.parametrize("file", sorted((PROJECT / "segcore").rglob("*.py")), ids=lambda path: path.stem)
def test_segcore_knows_neither_pipeline_nor_terminal_nor_environment(file: Path) -> None:
    relative = file.relative_to(PROJECT).as_posix()
    roots = {name.partition(".")[0] for name in imports(relative)}
    assert roots & {"stages", "dvc", "dvclive", "typer", "rich", "click"} == set()
    for node in ast.walk(parsed(relative)):
        assert not (isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")), relative
        assert not (isinstance(node, ast.Name) and node.id == "print"), relative


@pytest.mark.parametrize("file", sorted((PROJECT / "stages").glob("*.py")), ids=lambda path: path.stem)
def test_no_stage_imports_another(file: Path) -> None:
    shared = {"stages.run", "stages.training", "stages"}
    others = {name for name in imports(file.relative_to(PROJECT).as_posix()) if file_of(name) and "stages" in name}
    assert others <= shared
