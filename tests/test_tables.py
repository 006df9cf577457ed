"""Tables in the documents are what the files say, and the command sees where they are not."""

import json
from pathlib import Path

import pytest
import typer

from segcore.commands import tables
from segcore.errors import Problem

SYSTEMS = """system,mean_iou,pixel_accuracy,boundary_f,masks_per_class,tagged_images,state
sec,0.2517,0.7252,0.0313,none,1500,current
decouplednet,0.3266,0.8723,0.1531,5,1500,stale
broken,,0.5,0.1,5,0,current
dsrg,,,,,,missing
"""


def marked(name: str) -> str:
    return f"before\n\n<!-- table: {name} -->\nold\n<!-- end -->\n\nafter\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "docs/tables").mkdir(parents=True)
    (tmp_path / "README.md").write_text(marked("small"))
    (tmp_path / "docs/results.md").write_text("no table\n")
    (tmp_path / "docs/tables/small.csv").write_text('system,mIoU,learns from\na,"1,234.5",tags\nb,-,"masks | tags"\n')
    return tmp_path


def readme(root: Path) -> str:
    return (root / "README.md").read_text()


def test_a_table_is_what_its_file_holds(root: Path) -> None:
    tables.main(root=root)
    assert readme(root) == (
        "before\n\n<!-- table: small -->\n\n"
        "| system | mIoU | learns from |\n| --- | ---: | --- |\n| a | 1,234.5 | tags |\n| b | - | masks \\| tags |\n"
        "\n<!-- end -->\n\nafter\n"
    )


def test_the_line_below_says_what_made_it(root: Path) -> None:
    content = {"machine": "two cores", "command": "dvc repro", "commit": "abc1234"}
    (root / "docs/tables/small.json").write_text(json.dumps(content))
    tables.main(root=root)
    assert "tags |\n\n`dvc repro`; commit abc1234; two cores.\n\n<!-- end -->" in readme(root)


def test_writing_twice_changes_nothing(root: Path) -> None:
    tables.main(root=root)
    once = readme(root)
    tables.main(root=root)
    assert readme(root) == once


def test_check_writes_nothing_and_fails_until_it_is_written(root: Path) -> None:
    before = readme(root)
    with pytest.raises(typer.Exit) as stopped:
        tables.main(root=root, check=True)
    assert stopped.value.exit_code == 1
    assert readme(root) == before
    tables.main(root=root)
    tables.main(root=root, check=True)


def test_the_embedded_set_comes_from_its_report(root: Path) -> None:
    (root / "README.md").write_text(marked("embedded"))
    (root / "data/shapes/report").mkdir(parents=True)
    (root / tables.SYSTEMS).write_text(SYSTEMS)
    tables.main(root=root)
    assert (
        "| system | mIoU | pixel accuracy | boundary F | masks per class | tagged images | state |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |\n"
        "| sec | 25.2 | 72.5 | 3.1 | none | 1,500 | current |\n"
        "| broken | - | 50.0 | 10.0 | 5 | 0 | current |\n"
        "| decouplednet | 32.7 | 87.2 | 15.3 | 5 | 1,500 | stale |\n"
        "\n<!-- end -->"
    ) in readme(root)


def test_states_are_told_where_they_differ_only(root: Path) -> None:
    (root / "README.md").write_text(marked("embedded"))
    (root / "data/shapes/report").mkdir(parents=True)
    (root / tables.SYSTEMS).write_text(SYSTEMS.replace("stale", "current"))
    tables.main(root=root)
    assert "| system | mIoU | pixel accuracy | boundary F | masks per class | tagged images |\n" in readme(root)
    assert readme(root).index("decouplednet") < readme(root).index("sec")


def test_without_a_report_the_embedded_set_stays(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "README.md").write_text(marked("embedded"))
    tables.main(root=root, check=True)
    assert readme(root) == marked("embedded")
    assert "data/shapes/report/systems.csv is not there" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (marked("smal"), "did you mean 'small'"),
        ("<!-- table: small -->\nno end\n", "add|have a beginning and an end"),
        ("<!-- table: small -->\n<!-- table: small -->\n<!-- end -->\n", "have a beginning and an end"),
    ],
)
def test_a_marker_that_means_nothing_is_refused(root: Path, text: str, message: str) -> None:
    (root / "README.md").write_text(text)
    with pytest.raises(Problem, match=message):
        tables.main(root=root)


def test_rows_of_other_lengths_and_other_keys_are_refused(root: Path) -> None:
    (root / "docs/tables/small.json").write_text('{"comand": "x"}')
    with pytest.raises(Problem, match="command, commit, machine"):
        tables.main(root=root)
    (root / "docs/tables/small.csv").write_text("a,b\n1\n")
    with pytest.raises(Problem, match="as many cells"):
        tables.main(root=root)


def test_the_documents_of_this_project_are_up_to_date() -> None:
    tables.main(root=Path(__file__).parents[1], check=True)
