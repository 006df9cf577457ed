"""Where the pictures of a data set are that its annotations name."""

import re
from collections import defaultdict
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

from segcore.errors import Problem

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm")
"""Of pictures, in any case."""

_UPLOAD = re.compile(r"^[0-9a-f]{8}-")
"""What Label Studio puts before the names of files that are uploaded."""


class Pictures:
    """Every picture in a folder, but for those in another one that may lie in it, found by what tools call it.

    Raises:
        Problem: no such folder, or no pictures in it.
    """

    def __init__(self, folder: Path, without: Path | None = None) -> None:
        if not folder.is_dir():
            raise Problem(f"{folder}: there is no such folder of pictures; say where they are by --images")
        self.folder = folder
        files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in ENDINGS and path.is_file()]
        if without is not None and without != folder:
            files = [path for path in files if not path.is_relative_to(without)]
        self.by_path = {path.relative_to(folder).as_posix(): path for path in files}
        self.by_name: defaultdict[str, list[Path]] = defaultdict(list)
        self.by_stem: defaultdict[str, list[Path]] = defaultdict(list)
        for path in files:
            self.by_name[path.name].append(path)
            self.by_stem[path.stem].append(path)
        if not files:
            raise Problem(
                f"{folder}: no pictures there; looked for {', '.join(ENDINGS)}; name their folder by --images"
            )

    def find(self, name: str) -> Path | None:
        """The picture of a path, URL or name: by its path in the folder, else by its own name if only one has that.

        A name without a picture's ending is that of a picture with any.
        """
        if name in self.by_path:
            return self.by_path[name]
        path = _local(name)
        if path in self.by_path:
            return self.by_path[path]
        # A path from elsewhere: what it ends with may be a path here.
        parts = PurePosixPath(path).parts
        for begin in range(1, len(parts)):
            if (rest := "/".join(parts[begin:])) in self.by_path:
                return self.by_path[rest]
        last = parts[-1] if parts else ""
        for candidates in (self.by_name.get(last), self.by_name.get(_UPLOAD.sub("", last))):
            if candidates and len(candidates) == 1:
                return candidates[0]
        return None if PurePosixPath(last).suffix.lower() in ENDINGS else self.of_stem(path)

    def of_stem(self, stem: str) -> Path | None:
        """The one picture with this name but for its ending; a path with slashes is meant from the folder."""
        path = PurePosixPath(stem)
        found = [file for file in self.by_stem.get(path.name, ()) if self._ends(file, path)]
        return found[0] if len(found) == 1 else None

    def _ends(self, file: Path, path: PurePosixPath) -> bool:
        return len(path.parts) == 1 or file.relative_to(self.folder).with_suffix("").as_posix() == path.as_posix()


def _local(name: str) -> str:
    """The path in a name: without what makes it a URL, or Label Studio's place of local files (`?d=path`)."""
    parts = urlsplit(name.replace("\\", "/"))
    path = parse_qs(parts.query).get("d", [parts.path])[0] if parts.query else name.replace("\\", "/")
    if parts.scheme and parts.netloc and not parts.query:
        path = parts.path
    return unquote(path) if parts.scheme or parts.query else path.lstrip("./") if path.startswith("./") else path


def beside(source: Path, given: Path | None, *usual: str) -> Path:
    """The folder of the pictures: the one given, a usual one beside the annotations, or that of the annotations."""
    if given is not None:
        return given
    folder = source if source.is_dir() else source.parent
    return next((folder / name for name in usual if (folder / name).is_dir()), folder)
