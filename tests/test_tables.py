"""Tables in the documents are what the files say, and the command sees where they are not."""

import json
import subprocess
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
OVER = ",".join(f"{over}{end}" for over in ("over_masks_only", "over_next") for end in ("", "_low", "_high"))
COLUMNS = "system,state,mean_iou,pixel_accuracy,boundary_f,masks_per_class,tagged_images,published,seeds"
SEEDED = f"""{COLUMNS},seeds_apart,seeds_of_other_code,mean_over_seeds,std_over_seeds,mean_over_shared_seeds,{OVER}
sec,current,0.3,0.7,0.03,none,1500,50.7,0,,,0.3001,,0.3,-0.02,-0.05,0.01,,,
dis,current,0.31,0.8,0.1,5,1500,,0 1 2,1,1 2,0.4,0.0123,0.33,0.08,0.05,0.11,0.08,,
masks,stale,0.5,0.8,0.1,,,,,,,,,,,,,,,
deeplab,current,0.32,0.9,0.1,5,0,,0 1,,1,0.29,0.02,0.32,,,,0.02,-0.01,0.05
"""
CURVE = """system,point,seed,masks_per_class,masks,tagged,hours,mean_iou
dis,masks_5,0,5.0,50,1000,8.6,0.3
dis,masks_5,1,5.0,50,1000,8.6,0.32
dis,masks_all,0,100.0,1000,1000,66.6,0.5
"""


def marked(name: str) -> str:
    return f"before\n\n<!-- table: {name} -->\nold\n<!-- end -->\n\nafter\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "docs/tables").mkdir(parents=True)
    (tmp_path / "README.md").write_text(marked("small"))
    for name in ("own-data", "results"):
        (tmp_path / f"docs/{name}.md").write_text("no table\n")
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


def test_a_table_may_show_some_rows_and_columns(root: Path) -> None:
    (root / "README.md").write_text(marked("demo"))
    (root / "data/shapes/report").mkdir(parents=True)
    (root / tables.SYSTEMS).write_text(SYSTEMS)
    beside = root / "docs/tables/demo.json"
    beside.write_text('{"rows": "sec, decouplednet", "columns": "system, boundary F"}')
    tables.main(root=root)
    assert "| system | boundary F |\n| --- | ---: |\n| sec | 3.1 |\n| decouplednet | 15.3 |\n\n<!--" in readme(root)
    beside.write_text('{"rows": "sec, dsrg"}')
    with pytest.raises(Problem, match="found 'dsrg', which its table has not"):
        tables.main(root=root)


def test_states_are_told_where_they_differ_only(root: Path) -> None:
    (root / "README.md").write_text(marked("embedded"))
    (root / "data/shapes/report").mkdir(parents=True)
    (root / tables.SYSTEMS).write_text(SYSTEMS.replace("stale", "current"))
    tables.main(root=root)
    assert "| system | mIoU | pixel accuracy | boundary F | masks per class | tagged images |\n" in readme(root)
    assert readme(root).index("decouplednet") < readme(root).index("sec")


def test_seeds_and_what_chance_may_explain(root: Path) -> None:
    """The best over the seeds of all first; a paper's number where there is one."""
    (root / "README.md").write_text(marked("report/voc_mini"))
    (root / "data/voc_mini/report").mkdir(parents=True)
    (root / "data/voc_mini/report/systems.csv").write_text(SEEDED)
    (root / "docs/tables/report").mkdir()
    (root / "docs/tables/report/voc_mini.json").write_text('{"command": "make seeds"}')
    tables.main(root=root)
    assert (
        "| system | mIoU | pixel accuracy | boundary F | seeds | over masks only | over the next row | published "
        "| masks per class | tagged images | state |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |\n"
        "| dis | 40.0 ± 1.2 | 80.0 | 10.0 | 3 | +8.0 (+5.0 to +11.0) | +8.0 (too few images for an interval) "
        "| - | 5 | 1,500 | current |\n"
        "| deeplab | 29.0 ± 2.0 | 90.0 | 10.0 | 2 | - | +2.0 (-1.0 to +5.0), level | - | 5 | 0 | current |\n"
        "| sec | 30.0 | 70.0 | 3.0 | 1 | -2.0 (-5.0 to +1.0), level | - | 50.7 | none | 1,500 | current |\n"
        "| masks | 50.0 | 80.0 | 10.0 | - | - | - | - |  |  | stale |\n"
        "\nIn per cent; mIoU over several seeds is mean ± standard deviation"
    ) in readme(root)
    left_out = "Left out of differences, as the other row saw other images: seed 1 of dis. "
    left_out += "Results of other seeds that are of earlier or unknown code, and counted: 3."
    assert f"holds 0. {left_out}\n\n`make seeds`.\n\n<!-- end -->" in readme(root)


@pytest.mark.parametrize(
    ("choice", "line"),
    [
        ({"rows": "sec", "columns": "system, mIoU"}, "seed 0"),
        (
            {"rows": "dis", "columns": "system, mIoU"},
            "mIoU: mean ± standard deviation over seeds 0, 1, 2, other scores of",
        ),
        ({"rows": "dis, sec"}, "mIoU: mean ± standard deviation over the seeds of each row, other scores of"),
        ({"rows": "dis", "columns": "system, boundary F"}, ""),
    ],
)
def test_a_choice_says_of_which_seeds_it_is(root: Path, choice: dict[str, str], line: str) -> None:
    (root / "README.md").write_text(marked("demo"))
    (root / "data/shapes/report").mkdir(parents=True)
    (root / tables.SYSTEMS).write_text(SEEDED)
    (root / "docs/tables/demo.json").write_text(json.dumps(choice | {"command": "make demo"}))
    tables.main(root=root)
    assert f"|\n\n`make demo`{'; ' * bool(line)}{line}" in readme(root)
    assert line or "|\n\n`make demo`.\n" in readme(root)


def test_a_curve_as_a_table(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "README.md").write_text(marked("curve/voc_mini"))
    tables.main(root=root, check=True)
    assert "data/voc_mini/curve/curve.csv is not there; `make curve`" in capsys.readouterr().out
    (root / "data/voc_mini/curve").mkdir(parents=True)
    (root / "data/voc_mini/curve/curve.csv").write_text(CURVE)
    tables.main(root=root)
    assert "| dis | 5.0 | 50 | 1,000 | 8.6 | 31.0 ± 1.4 | 2 |\n| dis | 100.0 | 1,000 | 1,000 | 66.6 | 50.0 | 1 |\n" in (
        readme(root)
    )


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
    project = Path(__file__).parents[1]
    same = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", tables.SYSTEMS], cwd=project, capture_output=True)
    if same.returncode:
        pytest.skip("the report was made anew here, or this is no Git checkout: documents tell the committed one")
    tables.main(root=project, check=True)
