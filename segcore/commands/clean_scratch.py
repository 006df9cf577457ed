"""Empty the scratch folder: `make clean-scratch`. A training or an extraction that was stopped then starts anew.

Recorded times stay, and so does what belongs to a run that is at work. No stage of the pipeline.
"""

from segcore.cli import command, console, scratch


def main() -> None:
    """Delete what stopped runs left, and say how much that was."""
    paths = [path for path in scratch.FOLDER.glob("*") if path.name not in scratch.KEPT]
    size = {path: sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file()) for path in paths}
    gone = scratch.take_away(paths)
    console.say(f"{len(gone)} files and folders of stopped runs deleted, {sum(size[p] for p in gone) / 1e6:,.0f} MB")
    for path in sorted({*paths} - {*gone}):
        console.say(f"{path} stays: a run is at work on it")


if __name__ == "__main__":
    command.start(main)
