"""dvc.yaml and what check_params writes tell the truth: what a stage's results come from, no more and no less."""

import ast
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from dvc.repo import Repo
from dvc.stage import PipelineStage

from segcore import sources
from segcore.config import plan
from segcore.config.settings import Settings, load
from segcore.reporting import code_behind
from segcore.sources import Code
from tests.devkit import PROJECT

CHECK, OUTSIDE = "check_params", "outside_files"
BEFORE_ALL = (CHECK, OUTSIDE)
"""What runs before any stage that makes something: commands, not in stages/."""
ROOMS = (
    *("errors", "files", "seeds", "processes", "memory", "made_of", "sources"),
    *("config", "projects", "data", "importers", "exchange", "losses", "networks", "localisation", "features"),
    *("training", "systems", "regularisers", "models", "evaluation", "fitting", "reporting", "prediction"),
    *("exporting", "acquisition", "serving", "cli", "commands"),
    *("__main__", "stages"),
)
"""The rooms of the house in order: each knows only those before it."""

CONTRACT = "segcore/systems/contract.py"

STAGES = {str(stage.name): stage for stage in Repo(str(PROJECT)).index.stages if isinstance(stage, PipelineStage)}
TODAY = load(PROJECT / "params.yaml")
SCRIPTS = sorted({name.partition("@")[0] for name in STAGES})
DATA = f"data/{TODAY.dataset.name}"


def paths(name: str) -> list[str]:
    """Every path that dvc.yaml gives a stage as a dependency."""
    return [str(dep.def_path) for dep in STAGES[name].deps]


def covers(place: str, file: str) -> bool:
    return file == place or file.startswith(f"{place}/")


def parsed(file: str) -> ast.Module:
    return ast.parse((PROJECT / file).read_text())


CODE = Code()
MAKING = [name for name in STAGES if name not in BEFORE_ALL]
"""The stages that make something."""


@cache
def handed() -> dict[str, dict[str, str]]:
    """The files of code that each stage's results come from, as it is handed them."""
    return {name: CODE.fingerprints(*code_behind.roots(TODAY, name.replace("@", "/"))) for name in MAKING}


def test_no_stage_lists_code_but_the_check() -> None:
    listed = {name: {path for path in paths(name) if path.split("/")[0] in ("segcore", "stages")} for name in STAGES}
    assert {name: code for name, code in listed.items() if code} == {CHECK: {"segcore", "stages"}}


@pytest.mark.parametrize("name", MAKING)
def test_a_stage_is_handed_its_script_and_its_module(name: str) -> None:
    script, _, entry = name.partition("@")
    assert f"stages/{script}.py" in handed()[name]
    modules = {file for file in handed()[name] if re.match(r"segcore/systems/[a-z]", file)} - {CONTRACT}
    if script in code_behind.OF_A_SYSTEM:
        assert f"segcore/systems/{TODAY.systems[entry].module}.py" in modules
    else:
        assert modules == set(), "another system would make it run again"


def test_what_changes_no_result_is_there_and_handed_to_nobody() -> None:
    assert all((PROJECT / place).exists() for place in sources.CHANGES_NO_RESULT)
    assert not any(sources.changes_no_result(file) for used in handed().values() for file in used)


def test_the_page_is_made_of_its_templates() -> None:
    templates = {file.relative_to(PROJECT).as_posix() for file in (PROJECT / "segcore/reporting/templates").iterdir()}
    assert templates <= handed()["report"].keys()
    assert not templates & {file for name, used in handed().items() if name != "report" for file in used}


def test_git_ignores_what_dvc_keeps_and_nothing_else() -> None:
    """By data/.gitignore: DVC would take its own lines away when a later stage fails."""
    outs = {str(out.def_path): bool(out.use_cache) for stage in STAGES.values() for out in stage.outs}
    command = ["git", "check-ignore", "--no-index", "--stdin"]
    said = subprocess.run(command, cwd=PROJECT, input="\n".join(outs), capture_output=True, text=True)
    assert {*said.stdout.split("\n")} - {""} == {path for path, kept in outs.items() if kept}
    assert [path for path in (PROJECT / "data").rglob(".gitignore") if path.parent != PROJECT / "data"] == []


def test_what_params_yaml_names_is_summed_up_always() -> None:
    """And nothing but the check follows from it by itself."""
    assert STAGES[OUTSIDE].always_changed
    assert [name for name in STAGES if f"{DATA}/outside_files.json" in paths(name)] == [CHECK]
    assert not any(stage.always_changed for name, stage in STAGES.items() if name != OUTSIDE)


@pytest.mark.parametrize("name", MAKING)
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
    module = TODAY.systems[name.partition("@")[2]].module
    found, left = set[str](), ["stages/evaluate.py", f"segcore/systems/{module}.py"]
    while left:
        file = left.pop()
        found.add(file)
        left += CODE.imported(file) - found
    code = (
        f"import sys, segcore.systems.{module}, stages.evaluate\n"
        "names = ('segcore.', 'stages.')\n"
        "print(*(m.__file__ for n, m in sys.modules.items() if n.startswith(names)), sep='\\n')"
    )
    listing = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    loaded = {Path(line).relative_to(PROJECT).as_posix() for line in listing.stdout.split()}
    late = {file for file in found if file not in loaded}  # inside of functions: of `cli.command.settings`
    assert loaded <= found
    assert late <= {"segcore/systems/__init__.py", "segcore/regularisers/__init__.py"}


class TestWhatAFileSays:
    """Remarks are for people: a change of them runs nothing again."""

    BEFORE = '''"""A file."""

import os  # of Python

WORDS = """first

# second"""
"""What WORDS are."""


def f(a):
    """One line."""
    # Why.
    return "#" + a  # so
'''
    AFTER = 'import os\nWORDS = """first\n\n# second"""\ndef f(a):\n    return "#" + a'

    def test_comments_docstrings_and_blank_lines_are_left_out(self) -> None:
        assert sources.without_remarks(self.BEFORE) == self.AFTER

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ('"#"', '"##"'),
            ("first\n\n", "first\n"),
            ("# second", "# third"),
            ("import os", "import sys"),
            ("(a)", "(a=1)"),
        ],
    )
    def test_what_an_interpreter_reads_is_not(self, old: str, new: str) -> None:
        assert sources.without_remarks(self.BEFORE.replace(old, new, 1)) != self.AFTER

    @pytest.mark.parametrize("name", [name for name in CODE.files if name.endswith(".py")])
    def test_every_file_of_ours_still_says_the_same(self, name: str) -> None:
        """As Python's own reader sees it."""
        text = (PROJECT / name).read_text()
        assert ast.dump(self.bare(sources.without_remarks(text))) == ast.dump(self.bare(text))

    @staticmethod
    def bare(text: str) -> ast.Module:
        """A parsed file without strings that are statements; `pass` where nothing is left."""
        try:
            tree = ast.parse(text)
        except IndentationError:  # a function of a docstring alone has no body left
            tree = ast.parse(re.sub(r"(?m)^(\s*)((?:def|class) .*|.*\) -> .*):$(?!\n\1\s)", r"\1\2: pass", text))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list):
                kept = [
                    n
                    for n in body
                    if not (isinstance(n, ast.Expr) and _is_text(n.value)) and not isinstance(n, ast.Pass)
                ]
                node.body = kept  # pyright: ignore[reportAttributeAccessIssue]
        return tree

    def test_a_remark_hands_no_stage_anything_else(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for place in ("segcore", "stages"):
            shutil.copytree(PROJECT / place, tmp_path / place, ignore=shutil.ignore_patterns("__pycache__"))
        monkeypatch.setattr(sources, "PACKAGE", tmp_path / "segcore")
        file = tmp_path / "segcore/data/order.py"
        text = file.read_text()
        roots = code_behind.roots(TODAY, "train_segmenter/deeplab")
        file.write_text(f"# Another remark.\n{text}")
        assert Code().fingerprints(*roots) == handed()["train_segmenter@deeplab"]
        file.write_text(f"{text}\nOTHER = 1\n")
        after = Code().fingerprints(*roots)
        assert {name for name in after if after[name] != handed()["train_segmenter@deeplab"][name]} == {
            "segcore/data/order.py"
        }


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


@pytest.mark.parametrize("package", ["segcore", "stages"])
def test_the_roots_of_the_packages_are_empty(package: str) -> None:
    """They are loaded by everything and handed to nobody; `segcore.load` loads what it needs when it is called."""
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
            for other in CODE.imported(file)
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
            for other in sorted(CODE.imported(file)):
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
        roots = {name.partition(".")[0] for name in CODE.module(file).imports}
        assert roots & {"stages", "dvc", "dvclive", "typer", "rich", "click"} == set()
        for node in ast.walk(parsed(file)):
            assert not (isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv"))
            assert not (isinstance(node, ast.Name) and node.id == "print")

    @pytest.mark.parametrize("file", [file for file in FILES if file.startswith("stages/")])
    def test_no_stage_imports_another(self, file: str) -> None:
        assert not {other for other in CODE.imported(file) if other.startswith("stages/")}


class TestWhatRunsAgain:
    """After a change of a file."""

    @staticmethod
    def starts(file: str) -> set[str]:
        """The stages that run because of the file, not because of what others make."""
        assert file in CODE.files
        return {name for name, used in handed().items() if file in used}

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

    @pytest.mark.parametrize("file", ["segcore/data/proposals.py", "segcore/data/crops.py"])
    def test_edge_boxes_retrain_only_those_whose_crops_change(self, file: str) -> None:
        started = self.starts(file)
        assert "make_crops" in started
        learners = {f"train_segmenter@{name}" for name, entry in TODAY.systems.items() if entry.labels == "crops"}
        assert self.training(started) <= learners
        assert self.training(self.follows({"make_crops"})) == learners

    @pytest.mark.parametrize("file", ["segcore/exchange/coco.py", "segcore/exchange/cvat.py"])
    def test_a_format_of_other_tools_runs_nothing_again(self, file: str) -> None:
        assert self.starts(file) == set()

    @pytest.mark.parametrize(
        "place", ["segcore/importers/unet.py", "segcore/systems/unet.py", "segcore/regularisers/x.py"]
    )
    def test_a_new_file_runs_nothing_again(self, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for folder in ("segcore", "stages"):
            shutil.copytree(PROJECT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
        (tmp_path / place).write_text("NEW = 1\n")
        monkeypatch.setattr(sources, "PACKAGE", tmp_path / "segcore")
        code = Code()
        assert place in code.files
        assert {
            name: code.fingerprints(*code_behind.roots(TODAY, name.replace("@", "/"))) for name in MAKING
        } == handed()

    def test_background_cues_retrain_nothing_by_themselves(self) -> None:
        """Those that learn from cues, once other cues were extracted; never DeepLab on masks, nor a classifier."""
        started = self.starts("segcore/localisation/background.py")
        assert {name for name in STAGES if name.startswith("extract_pseudo_labels@")} <= started
        assert self.training(started) == set()

    @pytest.mark.parametrize(
        "file", sorted((PROJECT / "segcore/evaluation").glob("[!_]*.py")), ids=lambda path: path.stem
    )
    def test_how_systems_are_scored_retrains_nothing(self, file: Path) -> None:
        """A classifier measures its tags itself."""
        started = self.training(self.starts(file.relative_to(PROJECT).as_posix()))
        assert not any(name.startswith("train_segmenter") for name in started)
        assert bool(started) == (file.stem in ("tags", "numbers"))

    @pytest.mark.parametrize("place", sources.CHANGES_NO_RESULT)
    def test_words_and_checks_run_nothing_but_the_check(self, place: str) -> None:
        assert not any(covers(place, file) for used in handed().values() for file in used)
