"""Empty the scratch folder: `make clean-scratch`. A training or an extraction that was stopped then starts anew.

Recorded times stay, and so does what belongs to a run that is at work, copies of the project for seeds and curves among
it. No stage of the pipeline.
"""

from pathlib import Path

from segcore.cli import command, console, copies, scratch


def main() -> None:
    """Delete what stopped runs left, and say how much that was."""
    apart = {*scratch.KEPT, copies.FOLDER.name}
    paths = [path for path in scratch.FOLDER.glob("*") if path.name not in apart]
    of_the_project = [path for path in copies.FOLDER.glob("*") if path.is_dir()]
    size = {path: _bytes_of(path) for path in (*paths, *of_the_project)}
    gone = [*scratch.take_away(paths), *copies.take_away(of_the_project)]
    console.say(f"{len(gone)} files and folders of stopped runs deleted, {sum(size[p] for p in gone) / 1e6:,.0f} MB")
    for path in sorted({*size} - {*gone}):
        console.say(f"{path} stays: a run is at work on it")


def _bytes_of(path: Path) -> int:
    """Of a file or of all files in a folder, but what links lead to."""
    return sum(file.lstat().st_size for file in [path, *path.rglob("*")] if file.is_file() and not file.is_symlink())


if __name__ == "__main__":
    command.start(main)
