"""Pictures that are read when they are asked for: a batch of large ones would not fit into memory."""

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
from jaxtyping import UInt8

from segcore.data.addresses import Address
from segcore.data.pictures import read_image

Image = UInt8[np.ndarray, "_ _ 3"]


class Pictures(Sequence[Image]):
    """The pictures in some files; nothing is kept."""

    def __init__(self, files: Sequence[Address]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    @overload
    def __getitem__(self, place: int) -> Image: ...
    @overload
    def __getitem__(self, place: slice) -> "Pictures": ...
    def __getitem__(self, place: int | slice) -> "Image | Pictures":
        return Pictures(self.files[place]) if isinstance(place, slice) else read_image(self.files[place])

    def __iter__(self) -> Iterator[Image]:
        return map(read_image, self.files)
