"""Pictures that no person looks at: what is asked to be as small as can be takes seven times as long to write."""

from typing import Any

from PIL import Image


def pngs() -> None:
    """From now on this process writes such a PNG with the least effort; its pixels are the same."""
    Image.preinit()
    written = Image.SAVE["PNG"]

    def save(image: Image.Image, *where: Any) -> None:
        if image.encoderinfo.pop("optimize", False):
            image.encoderinfo["compress_level"] = 1
        written(image, *where)

    Image.register_save("PNG", save)
