"""dvc.yaml tells the truth: stages declare the code they import and the values they read, no more and no less."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo
from dvc.stage import PipelineStage

from segcore import systems
from segcore.config import plan
from segcore.config.settings import Settings, load
from tests.devkit import PROJECT

CHECK, OUTSIDE = "check_params", "outside_files"
BEFORE_ALL = (CHECK, OUTSIDE)
"""What runs before any stage that makes something: commands, not in stages/."""
ROOMS = (
    *("errors", "files", "seeds", "processes", "made_of"),
    *(
        "config",
        "projects",
        "data",
        "importers",
        "exchange",
        "losses",
        "networks",
        "localisation",
        "features",
        "training",
    ),
    *("systems", "regularisers", "models", "evaluation", "fitting", "reporting", "prediction", "cli", "commands"),
    *("__main__", "stages"),
)
"""The rooms of the house in order: each knows only those before it."""

CHANGES_NO_RESULT = (
    "segcore/config",  # checks values; which of them a stage is handed, check_params writes into its params file
    "segcore/cli",  # shows, keeps time, reads options
    "segcore/commands",  # what a person starts, beside check_params
    "segcore/errors.py",  # words for a person
    "segcore/systems/__init__.py",  # finds a module by its name and checks its parameters
    "segcore/regularisers/__init__.py",  # likewise
)
"""What stages import without depending on it, or every new message would train everything again."""

OF_A_SYSTEM = ("train_segmenter", "evaluate")
"""The stages that load the module of a system.

Pseudo-labels from a segmenter need its module, too, which a template cannot name; they depend on the segmenter, and so
run again when a change of its module trains another one.
"""

CHECKED = ("segcore/commands/check_params.py", "segcore/config", "segcore/regularisers", "segcore/systems")
"""What check_params writes by; the cards of backbones, which it writes too, are read by nobody but `models`."""


STAGES = {str(stage.name): stage for stage in Repo(str(PROJECT)).index.stages if isinstance(stage, PipelineStage)}
TODAY = load(PROJECT / "params.yaml")
SCRIPTS = sorted({name.partition("@")[0] for name in STAGES})
DATA = f"data/{TODAY.dataset.name}"


def paths(name: str) -> list[str]:
    """Every path that dvc.yaml gives a stage as a dependency."""
    return [str(dep.def_path) for dep in STAGES[name].deps]


def declared(name: str) -> set[str]:
    """Those that are code: files, and folders that stand for all that is in them."""
    return {path for path in paths(name) if path.split("/")[0] in ("segcore", "stages")}


def covers(place: str, file: str) -> bool:
    return file == place or file.startswith(f"{place}/")


def covered(file: str, places: Any) -> bool:
    return any(covers(place, file) for place in places)


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


@cache
def imported(file: str) -> frozenset[str]:
    """The project's files that loading `file` loads first, with the packages that they lie in."""
    modules = [module.rsplit(".", count)[0] for module in imports(file) for count in range(module.count(".") + 1)]
    return frozenset(found for found in map(file_of, modules) if found is not None and found != file)


def says_nothing(file: str) -> bool:
    """Whether a file is a docstring alone, as the root of most rooms is."""
    return all(isinstance(node, ast.Expr) for node in parsed(file).body)


def reached(file: str, seen: set[str]) -> set[str]:
    """All files of the project that a result of `file` comes from, itself included."""
    seen.add(file)
    for found in imported(file):
        if found not in seen and not covered(found, CHANGES_NO_RESULT):
            reached(found, seen)
    return seen


def module_of(name: str) -> str:
    """The module of the system of a stage `<script>@<system>`."""
    return TODAY.systems[name.partition("@")[2]].module


def needed(name: str) -> set[str]:
    """The source files that a stage's results come from, its system's module among them."""
    script = name.partition("@")[0]
    files = reached(f"stages/{script}.py", set())
    if script in OF_A_SYSTEM:
        reached(f"segcore/systems/{module_of(name)}.py", files)
    return {file for file in files if not says_nothing(file)}


@pytest.mark.parametrize("name", [name for name in STAGES if name not in BEFORE_ALL])
def test_a_stage_declares_the_code_that_it_imports(name: str) -> None:
    assert {file for file in needed(name) if not covered(file, declared(name))} == set(), "dvc.yaml lacks these"


@pytest.mark.parametrize("script", [script for script in SCRIPTS if script not in BEFORE_ALL])
def test_no_code_is_declared_in_vain(script: str) -> None:
    """Over all its variants: what only one system needs is declared for all, as lists cannot be templated.

    Parameters that name few of the systems change nothing: what any of them needs may be declared.
    """
    variants = [name for name in STAGES if name.partition("@")[0] == script]
    used = set().union(*map(needed, variants))
    if script in OF_A_SYSTEM:
        for module in systems.names():
            reached(f"segcore/systems/{module}.py", used)
    vain = {place for place in set().union(*map(declared, variants)) if not any(covers(place, file) for file in used)}
    assert vain == set(), "no variant of this stage imports these"


def test_check_params_declares_what_it_checks_by() -> None:
    assert declared(CHECK) == set(CHECKED)
    assert all((PROJECT / place).exists() for place in CHECKED)


def test_what_params_yaml_names_is_summed_up_always() -> None:
    """And nothing but the check follows from it by itself."""
    assert STAGES[OUTSIDE].always_changed
    assert [name for name in STAGES if f"{DATA}/outside_files.json" in paths(name)] == [CHECK]
    assert not any(stage.always_changed for name, stage in STAGES.items() if name != OUTSIDE)


def test_what_is_declared_is_there() -> None:
    for name in STAGES:
        for place in declared(name):
            assert (PROJECT / place).exists(), (name, place)
            assert not covered(place, CHANGES_NO_RESULT) or name == CHECK, (name, place)


@pytest.mark.parametrize("name", [name for name in STAGES if name not in BEFORE_ALL])
def test_a_stage_depends_on_the_values_that_it_is_handed(name: str) -> None:
    """And on no parameters beside: DVC's own `params` are those of check_params alone."""
    written = {file for file, _ in plan.files(TODAY)}
    own = name.replace("@", "/")
    assert own in written
    assert [path for path in paths(name) if path.startswith(f"{DATA}/params/")] == [f"{DATA}/params/{own}.json"]
    assert "params.yaml" not in paths(name)


def test_every_file_of_values_belongs_to_a_stage() -> None:
    assert {file.replace("/", "@") for file, _ in plan.files(TODAY)} == {*STAGES} - {*BEFORE_ALL}


def test_check_params_depends_on_all_sections() -> None:
    (params,) = [dep for dep in STAGES[CHECK].deps if str(dep.def_path) == "params.yaml"]
    assert set(vars(params)["params"]) == set(Settings.KEYS)


def test_reading_the_imports_finds_what_an_interpreter_loads() -> None:
    name = next(name for name in STAGES if name.startswith("evaluate@"))
    script, module = "stages/evaluate.py", f"segcore/systems/{module_of(name)}.py"
    found, left = {script, module}, [script, module]
    while left:
        more = imported(left.pop()) - found
        found |= more
        left += more
    code = (
        f"import sys, segcore.systems.{module_of(name)}, stages.evaluate\n"
        "names = ('segcore.', 'stages.')\n"
        "print(*(m.__file__ for n, m in sys.modules.items() if n.startswith(names)), sep='\\n')"
    )
    listing = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    loaded = {Path(line).relative_to(PROJECT).as_posix() for line in listing.stdout.split()}
    late = {file for file in found if file not in loaded}  # inside of functions: of `cli.command.settings`
    assert loaded <= found
    assert late <= {"segcore/systems/__init__.py", "segcore/regularisers/__init__.py"}


@pytest.mark.parametrize("package", ["segcore", "stages"])
def test_the_roots_of_the_packages_are_empty(package: str) -> None:
    """They are loaded by everything and declared nowhere; `segcore.load` loads what it needs when it is called."""
    late = (ast.Expr, ast.FunctionDef)
    rest = [node for node in parsed(f"{package}/__init__.py").body if not isinstance(node, late)]
    for node in rest:
        name = ast.unparse(node.test) if isinstance(node, ast.If) else ast.unparse(node)
        assert name in ("TYPE_CHECKING", "from typing import TYPE_CHECKING")


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_says_what_it_is_for(name: str) -> None:
    assert STAGES[name].desc


class TestRooms:
    """The order of the house."""

    FILES = sorted(
        file.relative_to(PROJECT).as_posix()
        for root in ("segcore", "stages")
        for file in (PROJECT / root).rglob("*.py")
    )

    @staticmethod
    def room(file: str) -> str:
        parts = file.split("/")
        return "stages" if parts[0] == "stages" else parts[1].removesuffix(".py")

    def test_every_room_is_in_the_order(self) -> None:
        found = {self.room(file) for file in self.FILES} - {"__init__"}
        assert found == set(ROOMS), "give a new room its place in ROOMS"

    def test_no_room_knows_one_that_comes_later(self) -> None:
        back = {
            (file, other)
            for file in self.FILES
            for other in imported(file)
            if "__init__" != self.room(file) != self.room(other)
            and ROOMS.index(self.room(other)) > ROOMS.index(self.room(file))
        }
        assert back == set()

    def test_no_file_imports_itself_by_way_of_others(self) -> None:
        done: set[str] = set()

        def visit(file: str, above: tuple[str, ...]) -> None:
            assert file not in above, " imports ".join((*above[above.index(file) :], file))
            if file in done:
                return
            for other in sorted(imported(file)):
                # A module lies in its package, which is loaded first and may load its modules by name.
                if not (other.endswith("/__init__.py") and file.startswith(other.removesuffix("__init__.py"))):
                    visit(other, (*above, file))
            done.add(file)

        for file in self.FILES:
            visit(file, ())
        assert done == set(self.FILES)

    @pytest.mark.parametrize("file", [file for file in FILES if file.startswith("segcore/")])
    def test_the_core_knows_neither_pipeline_nor_terminal_nor_environment(self, file: str) -> None:
        """Only what a person starts and what DVC starts do: cli, commands and stages."""
        if self.room(file) in ("cli", "commands", "__main__"):
            return
        roots = {name.partition(".")[0] for name in imports(file)}
        assert roots & {"stages", "dvc", "dvclive", "typer", "rich", "click"} == set()
        for node in ast.walk(parsed(file)):
            assert not (isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv"))
            assert not (isinstance(node, ast.Name) and node.id == "print")

    @pytest.mark.parametrize("file", [file for file in FILES if file.startswith("stages/")])
    def test_no_stage_imports_another(self, file: str) -> None:
        assert not {other for other in imported(file) if other.startswith("stages/")}


class TestWhatRunsAgain:
    """After a change of a file, which need not be there yet."""

    @staticmethod
    def starts(file: str) -> set[str]:
        """The stages that DVC starts because of the file, not because of what others make."""
        return {name for name in STAGES if covered(file, declared(name))}

    @staticmethod
    def follows(names: set[str]) -> set[str]:
        """The stages that read what these make, and so run if it is not what it was."""
        made = {str(out.def_path) for name in names for out in STAGES[name].outs}
        return {
            name
            for name in STAGES
            if any(covers(path, out) or covers(out, path) for path in paths(name) for out in made)
        }

    @staticmethod
    def training(names: set[str]) -> set[str]:
        return {name for name in names if name.startswith("train_")}

    def test_the_files_of_these_cases_are_there(self) -> None:
        for file in ("data/proposals.py", "data/crops.py", "localisation/background.py", "evaluation/metrics.py"):
            assert (PROJECT / "segcore" / file).is_file()

    @pytest.mark.parametrize("file", ["segcore/data/proposals.py", "segcore/data/crops.py"])
    def test_edge_boxes_retrain_only_those_whose_crops_change(self, file: str) -> None:
        started = self.starts(file)
        assert "make_crops" in started
        assert self.training(started) == set()
        learners = {f"train_segmenter@{name}" for name, entry in TODAY.systems.items() if entry.labels == "crops"}
        assert self.training(self.follows({"make_crops"})) == learners

    @pytest.mark.parametrize("file", ["segcore/importers/coco.py", "segcore/importers/formats/cvat.py"])
    def test_a_new_importer_runs_nothing_again(self, file: str) -> None:
        assert self.starts(file) == set()

    @pytest.mark.parametrize("file", ["segcore/systems/unet.py", "segcore/regularisers/entropy.py"])
    def test_a_new_system_runs_nothing_but_the_check(self, file: str) -> None:
        assert self.starts(file) == {CHECK}

    def test_background_cues_retrain_nothing_by_themselves(self) -> None:
        """Those that learn from cues, once other cues were extracted; never DeepLab on masks, nor a classifier."""
        started = self.starts("segcore/localisation/background.py")
        assert {name for name in STAGES if name.startswith("extract_pseudo_labels@")} <= started
        assert self.training(started) == set()

    @pytest.mark.parametrize("file", sorted((PROJECT / "segcore/evaluation").glob("*.py")), ids=lambda path: path.stem)
    def test_how_systems_are_scored_retrains_nothing(self, file: Path) -> None:
        """A classifier measures its tags itself."""
        started = self.training(self.starts(file.relative_to(PROJECT).as_posix()))
        assert not any(name.startswith("train_segmenter") for name in started)
        assert bool(started) == (file.stem in ("tags", "numbers"))

    @pytest.mark.parametrize("place", CHANGES_NO_RESULT)
    def test_words_and_checks_run_nothing_but_the_check(self, place: str) -> None:
        assert self.starts(place if place.endswith(".py") else f"{place}/any.py") <= {CHECK}
