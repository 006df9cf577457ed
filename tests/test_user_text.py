"""What a person wrote is text wherever it goes: class names through tables, plots and page, and errors as they are."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from segcore.cli import command, console
from segcore.config.settings import load
from segcore.data.manifest import Record
from segcore.errors import Problem
from segcore.evaluation import scoring
from segcore.evaluation.metrics import BoundaryScore, ConfusionMatrix
from segcore.evaluation.per_image import ImageCounts
from segcore.files import as_cell, from_cell
from segcore.reporting import page, reading, results
from tests import invented

ODD = ["NA", "null", "nan", "actual", "1e5", "=cmd", "a,b", 'say "hi"', "None", "<b>bold</b>", "-1", "+x", "@y", "'q"]
NAMES = ["background", *ODD]


def odd_scores(names: list[str]) -> scoring.Scores:
    counts = np.arange(len(names) ** 2, dtype=np.int64).reshape(len(names), -1) + 1
    confusion = ConfusionMatrix(len(names), counts)
    return scoring.Scores(confusion, BoundaryScore(len(names), 0.01), [ImageCounts.of("one", confusion)], [])


@pytest.mark.parametrize("text", [*NAMES, "''", "", "=", "plain"])
def test_a_cell_is_text_and_comes_back(text: str) -> None:
    assert from_cell(as_cell(text)) == text
    assert not as_cell(text).startswith(("=", "+", "-", "@", "\t", "\r"))


def test_tables_of_odd_names_are_read_as_they_were_written(tmp_path: Path) -> None:
    scoring.write_results(odd_scores(NAMES), NAMES, tmp_path)
    names, counts = reading.read_counts(tmp_path / "confusion_counts.csv")
    assert names == NAMES
    np.testing.assert_array_equal(counts, odd_scores(NAMES).confusion.counts)
    for file, column in (("per_class.csv", 0), ("confusion.csv", 0), ("confusion.csv", 1), ("confusion_counts.csv", 0)):
        with (tmp_path / file).open(newline="") as lines:
            _, *rows = csv.reader(lines)
        assert list(dict.fromkeys(from_cell(row[column]) for row in rows)) == NAMES, file
        assert not any(cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row[: column + 1])
    assert list(json.loads((tmp_path / "metrics.json").read_text())["iou"]) == NAMES


def test_the_page_of_odd_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["background", *ODD[:10]]
    monkeypatch.setattr(invented, "NAMES", names)
    monkeypatch.setattr(invented, "SHAPES", names[1:])
    data = invented.invented_results(tmp_path, images=4, panels=1)
    found = results.Results(data, load(invented.PARAMS))
    html = page.rendered(found, "", page.Run("here", "abc", {}, {}))
    assert "<b>bold" not in html
    for shown in ("NA", "null", "nan", "actual", "1e5", "=cmd", "a,b", "say &#34;hi&#34;", "None", "&lt;b&gt;bold"):
        assert f'<th scope="row">{shown}' in html, shown


@pytest.mark.parametrize("text", [r"a\[b]", "[bold]x[/]", "[/]", r"\\[red]", ":smile:", "[link=x]", "100 %", "a]b["])
def test_errors_are_shown_letter_by_letter(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    made = Console(file=out, highlight=False, soft_wrap=True, emoji=False)
    monkeypatch.setattr(console, "console", made)
    console.complain(text)
    console.say(text)
    assert out.getvalue() == f"error: {text}\n{text}\n"


def test_what_a_terminal_would_obey_is_spelled_out(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=out, soft_wrap=True))
    console.say("a\x1b[31mb\x07\udcff\nc")
    assert out.getvalue() == "a\\x1b[31mb\\x07\\udcff\nc\n"


def test_an_error_of_the_system_has_no_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sys.argv", ["full"])
    with pytest.raises(SystemExit) as ended:
        command.start(full)
    assert ended.value.code == 2
    assert "error: No space left on device; make room, then run it again" in capsys.readouterr().out


def test_masks_that_show_no_class_measure_nothing(tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_text("a\n")
    record = Record("a", Path("a.jpg"), Path("a.png"), 4, 4, (), "val", "", "", ())
    with pytest.raises(Problem, match="no mask of the 1 images of .* shows a class, so there is nothing to measure"):
        scoring.validation_records({"a": record}, tmp_path / "val.txt")
