"""Which pictures are meant, and where what is predicted of each goes."""

import glob
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from segcore.errors import Problem

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm")
"""Of pictures in a folder, in any case; a file that is named itself may be called anything."""

LIST = ".txt"


@dataclass(frozen=True)
class Photo:
    """A picture to predict.

    `name` is its path within the folder that was given, with slashes; `out` is that without its ending, or with it
    where two pictures would have the same: files that belong to the picture are named so.
    """

    path: Path
    name: str
    out: str


def photos(given: Sequence[str]) -> list[Photo]:
    """The pictures in folders (searched through), of patterns, of lists (`.txt`, a path a line), and single files.

    In one order for the same files, each once.

    Raises:
        Problem: something that was given is not there, or there are no pictures.
    """
    found: dict[Path, str] = {}
    for text in given:
        for path, name in _of(text):
            found.setdefault(path.absolute(), name)
    if not found:
        raise Problem(f"{', '.join(given)}: no pictures there; looked for {', '.join(ENDINGS)}")
    entries = sorted(found.items(), key=lambda entry: (entry[1], str(entry[0])))
    stems = Counter(PurePosixPath(name).with_suffix("").as_posix() for _, name in entries)
    made = []
    for path, name in entries:
        stem = PurePosixPath(name).with_suffix("").as_posix()
        made.append(Photo(path, name, stem if stems[stem] == 1 else name))
    if twice := [out for out, count in Counter(photo.out for photo in made).items() if count > 1]:
        both = [str(photo.path) for photo in made if photo.out == twice[0]]
        raise Problem(f"{' and '.join(both)} would have one name, {twice[0]}; predict their folders one by one")
    return made


def _of(text: str) -> Iterator[tuple[Path, str]]:
    path = Path(text).expanduser()
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            name = file.relative_to(path)
            if file.suffix.lower() in ENDINGS and not any(part.startswith(".") for part in name.parts):
                yield file, name.as_posix()
    elif path.is_file() and path.suffix.lower() == LIST:
        for line in path.read_text("utf-8-sig").splitlines():
            if line.strip():
                listed = Path(line.strip()).expanduser()
                yield listed if listed.is_absolute() else path.parent / listed, listed.name
    elif path.is_file():
        yield path, path.name
    # A pattern may be absolute, which pathlib's is not.
    elif matches := sorted(glob.glob(str(path), recursive=True)):  # noqa: PTH207
        for match in map(Path, matches):
            if match.is_file():
                yield match, match.name
    else:
        raise Problem(f"{text}: there is no such picture, folder, list or pattern")
