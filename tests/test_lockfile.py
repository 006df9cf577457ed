"""A `dvc.lock` that a kill cut at any place is put together again."""

from segcore.cli.lockfile import HEAD, entries, mended, together, without_last
from tests.devkit import PROJECT


def entry(name: str, sum_: str, outs: int = 2) -> str:
    """An entry as DVC writes it."""
    lines = [f"  {name}:", "    cmd: python -m stages.x --name", f"      {name}", "    deps:"]
    for kind, count in (("deps", 1), ("outs", outs)):
        lines += [] if kind == "deps" else ["    outs:"]
        for place in range(count):
            lines += [
                f"    - path: data/{name}/{kind}{place}",
                "      hash: md5",
                f"      md5: {sum_}",
                "      size: 1234",
            ]
    return "".join(f"{line}\n" for line in lines)


NAMES = ("check_params", "prepare", "train_classifier@first", "train_classifier@second", "report")
WHOLE = HEAD + "".join(entry(name, "0f" * 16) for name in NAMES)


def test_the_entries_of_a_lock_are_its_text() -> None:
    found = entries(WHOLE)
    assert found is not None
    assert tuple(found) == NAMES
    assert together(found) == WHOLE
    assert entries(without_last(WHOLE)) == {name: found[name] for name in NAMES[:-1]}


def test_the_projects_own_lock_is_read() -> None:
    text = (PROJECT / "dvc.lock").read_text()
    found = entries(text)
    assert found is not None
    assert together(found) == text
    assert {"check_params", "prepare", "report"} <= {*found}


def test_what_is_no_lock_has_no_entries() -> None:
    assert entries("<<<<<<< HEAD\nschema: '2.0'\nstages:\n") is None
    assert mended("datasets: []\n", WHOLE) == "datasets: []\n"


def test_cut_anywhere_it_is_whole_again() -> None:
    assert [length for length in range(len(WHOLE)) if mended(WHOLE[:length], WHOLE) != WHOLE] == []


def test_newer_entries_stay() -> None:
    """But not the one at the cut: its stage left a mark, or DVC's run cache has it."""
    newer = WHOLE.replace(entry("prepare", "0f" * 16), entry("prepare", "aa" * 16, outs=3))
    end = newer.index("  train_classifier@first:")
    for length in range(len(newer)):
        expected = newer if length > end + len(entry("train_classifier@first", "0f" * 16)) else None
        found = mended(newer[:length], WHOLE)
        assert found in (newer, WHOLE), length
        assert expected in (None, found), length


def test_entries_that_the_copy_lacks_stay_as_far_as_they_are_whole() -> None:
    longer = WHOLE + entry("evaluate@first", "aa" * 16) + entry("evaluate@second", "bb" * 16)
    for length in range(len(WHOLE), len(longer)):
        found = mended(longer[:length], WHOLE)
        assert found.startswith(WHOLE)
        if not longer[:length].endswith("\n"):
            assert found in (WHOLE, WHOLE + entry("evaluate@first", "aa" * 16))


def test_a_lock_of_other_stages_stays_as_it_is() -> None:
    """Another commit was checked out, or a stage was taken out by hand."""
    other = WHOLE.replace(entry("prepare", "0f" * 16), "")
    assert mended(other, WHOLE) == other
    assert mended(HEAD + entry("another", "0f" * 16), WHOLE) == HEAD + entry("another", "0f" * 16)
    assert mended(WHOLE, "") == WHOLE


def test_without_a_copy_what_is_whole_stays() -> None:
    assert mended("", "") == ""
    for length in range(len(WHOLE)):
        found = mended(WHOLE[:length], "")
        assert WHOLE.startswith(found)
        assert len(found) <= length
