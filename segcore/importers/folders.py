"""The files of a folder by the ids of images, so that none is taken for another, or passed over, without a word."""

import unicodedata
from collections import defaultdict
from pathlib import Path

from segcore.errors import About

PICTURE_ENDINGS = (".jpg", ".png", ".jpeg")
"""In small letters; capitals are taken, too."""

OTHER_ENDINGS = (".tif", ".tiff", ".bmp", ".gif", ".webp", ".heic", ".avif", ".jp2", ".npy")
"""Of files that somebody may have meant as a picture or a mask: they are named where the right one is missing."""

MASK_ENDING = ".png"


def one_form(name: str) -> str:
    """The name in the one form of Unicode that all its spellings share: an accent may be a character of its own."""
    return unicodedata.normalize("NFC", name)


def spelled(name: str) -> str:
    """A name that tells its Unicode form."""
    return name if name.isascii() else f"{name} ({ascii(name)})"


class Folder:
    """The files of a folder, by their names without endings, in one form of Unicode; a missing folder has none."""

    def __init__(self, path: Path, problems: list[str]) -> None:
        """List it; that it may not be read is a problem of its own."""
        self.path = path
        self.files: defaultdict[str, list[Path]] = defaultdict(list)
        try:
            for file in sorted(path.iterdir()) if path.is_dir() else ():
                self.files[one_form(file.stem)].append(file)
        except OSError as error:
            problems.append(f"{path}: this folder cannot be read ({error.strerror}); check its permissions")

    def _of(self, image_id: str, endings: tuple[str, ...]) -> list[Path]:
        """The files of an id with these endings, in small letters or capitals."""
        return [file for file in self.files.get(one_form(image_id), ()) if file.suffix.lower() in endings]

    def holds(self, image_id: str) -> bool:
        """Whether anything here might be the mask of the id."""
        return bool(self._of(image_id, (*PICTURE_ENDINGS, *OTHER_ENDINGS)))

    def picture(self, image_id: str, problems: list[str]) -> Path:
        """The one picture of the id; where there is none, the devkit's own name for it."""
        found = self._of(image_id, PICTURE_ENDINGS)
        if len(found) > 1:
            names = " and ".join(spelled(file.name) for file in found)
            problems.append(f"{image_id}: has {len(found)} pictures in {self.path}, {names}; remove all but one")
        elif found and found[0].stem != image_id:
            problems.append(
                f"the id {spelled(image_id)} and its picture {spelled(found[0].name)} in {self.path} differ in their "
                "Unicode form; give both the same, and so the labels and tags"
            )
        elif not found and (others := self._of(image_id, OTHER_ENDINGS)):
            allowed = ", ".join(PICTURE_ENDINGS)
            problems.append(About(others[0], f"pictures may end in {allowed}, not in {others[0].suffix}; save it so"))
            return others[0]
        return found[0] if found else self.path / f"{image_id}{PICTURE_ENDINGS[0]}"

    def mask(self, image_id: str, problems: list[str], wanted: bool = True, ending: str = MASK_ENDING) -> Path | None:
        """The one mask of the id, exactly `<id><ending>`.

        Where there is none: its name, if it is `wanted`, or None. Anything that might have been meant is a problem, and
        is given all the same: an image whose mask was passed over would be taken for one without.
        """
        found = self._of(image_id, (*PICTURE_ENDINGS, *OTHER_ENDINGS, ending))
        exact = self.path / f"{image_id}{ending}"
        if len(found) > 1:
            names = " and ".join(spelled(file.name) for file in found)
            problems.append(f"{image_id}: has {len(found)} masks in {self.path}, {names}; remove all but one")
        elif found and found[0] != exact:
            what = f"looks like the mask of {spelled(image_id)}, but" if found[0].stem != image_id else "as labels,"
            form = f"{what} a name must be <id>{ending} to the letter; rename it, or save it so"
            problems.append(About(spelled(str(found[0])), form))
        if not found:
            return exact if wanted else None
        return exact if exact in found else found[0]
