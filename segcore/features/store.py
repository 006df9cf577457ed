"""A store of the features of a trunk that does not learn, on disk.

What lies in it is named by all that it depends on: the weights and the shape of the trunk, how this machine computes,
the sources that go from a picture to features, the picture's hash, the view. So nothing in it is ever stale, several
stages share it, and it may be deleted at any time: what is not there is computed again. A file is whole or not there.

Pictures go through the trunk one by one, so that a picture's features do not depend on its batch mates; any number of
processes makes the same bytes. Maps are known by the square that the trunk sees: whatever cut it out, the same pixels
have the same maps.
"""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import BFloat16, Float, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from segcore.data.manifest import Record
from segcore.data.pictures import read_image
from segcore.features.views import View
from segcore.files import fingerprint
from segcore.networks.pooled_head import PooledHead
from segcore.networks.trunk import Features, Trunk
from segcore.processes import Runtime

MOST_BYTES = 8 * 2**30
"""What stores may take of the disk, all together: the maps of ResNet-18 of 1,700 photographs at 320 pixels, as they are
and mirrored, are some 5 GB. What does not fit is computed each time that it is asked for: slower, and the same."""

SOURCES = ("data/geometry.py", "data/pictures.py", "features/store.py", "features/views.py")
"""What of `segcore` decides about features, beside its networks."""


class FeatureStore:
    """The features of one trunk.

    Args:
        folder: holds the stores of all trunks.
        trunk: in eval mode, on the device of `runtime`; it is not to change while the store is in use.
        most_bytes: what the stores in `folder` may take together.
    """

    def __init__(self, folder: Path, trunk: Trunk, runtime: Runtime, most_bytes: int = MOST_BYTES) -> None:
        if trunk.training:
            raise ValueError("the trunk of a store must be in eval mode")
        self.trunk = trunk
        self.runtime = runtime
        self.folder = folder / key_of(trunk, runtime)
        self.asked = 0
        """Views that this process has asked for."""
        self.computed = 0
        """Those of them that it has computed, as they were not there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        os.utime(self.folder)  # used now: those of other trunks go first
        self._room = (most_bytes - _bytes(folder)) // runtime.world

    def pooled(self, record: Record, view: View, head: PooledHead) -> dict[str, Float[np.ndarray, " _"]]:
        """What a head sees of a view, float32: `pooled`, its features (D,), and `top`, the mean of the top map (C,)."""
        if not record.image_sha256:
            raise ValueError(f"{record.image_id} has no hash, by which its features are found again")
        path = self._path(f"pooled-{_named(head)}/{view.name}", record.image_sha256)
        self.asked += 1
        found = _read(path)
        if found is None:
            features = self._computed(view.of(read_image(record.image)))
            found = {"pooled": head.pooled(features)[0].cpu(), "top": features.top.float().mean((2, 3))[0].cpu()}
            self._write(path, found)
        return {name: value.numpy() for name, value in found.items()}

    def maps(self, squares: Float[Tensor, "B 3 S S"], levels: Sequence[int]) -> Features:
        """What the trunk makes of squares, RGB in 0..255 in whole numbers: the maps of some of its levels, no switches.

        They are rounded to bf16 whether they are found or computed, and come in the precision of the run. The maps of
        other levels have no cells.
        """
        whole = squares.to(torch.uint8)
        if not torch.equal(whole.to(squares.dtype), squares):
            raise ValueError("squares whose maps are stored have whole numbers from 0 to 255")
        each = [self._maps(square, levels) for square in whole.cpu()]
        kind = torch.bfloat16 if self.runtime.precision == "bf16" else torch.float32
        channels = self.trunk.level_channels
        maps = [torch.empty(len(each), count, 0, 0, dtype=kind, device=self.runtime.device) for count in channels]
        for place, level in enumerate(levels):
            maps[level] = torch.stack([of[place] for of in each]).to(maps[level]).permute(0, 3, 1, 2)
        return Features(tuple(maps), (None,) * len(channels))

    def _maps(self, square: UInt8[Tensor, "3 S S"], levels: Sequence[int]) -> list[BFloat16[Tensor, "_ _ _"]]:
        """The maps of one square, channels last."""
        square = square.contiguous()  # whatever its batch was: another layout in memory may round otherwise
        name = hashlib.sha256(f"{tuple(square.shape)}".encode())
        name.update(square.numpy().tobytes())
        path = self._path(f"maps-{'-'.join(map(str, levels))}", name.hexdigest())
        self.asked += 1
        found = _read(path)
        if found is None:
            maps = self._computed(square).levels
            # Rounded whether they find room on the disk or not: that may not change a result.
            rounded = [maps[level][0].permute(1, 2, 0).to(torch.bfloat16).cpu().contiguous() for level in levels]
            found = {str(place): one for place, one in enumerate(rounded)}
            self._write(path, found)
        return [found[str(place)] for place in range(len(levels))]

    @torch.no_grad()  # not inference_mode, as what is computed may be what a head learns from
    def _computed(self, square: UInt8[Tensor, "3 S S"]) -> Features:
        self.computed += 1
        self.trunk.eval()  # a system in training has set it otherwise, with all its layers
        alone = square[None].float().to(self.runtime.device)
        with self.runtime.autocast():
            return self.trunk(alone.contiguous(memory_format=torch.channels_last))

    def __deepcopy__(self, memo: Any) -> "FeatureStore":
        """Itself: a copy of a system reads the same store."""
        return self

    def _path(self, kind: str, sha256: str) -> Path:
        return self.folder / kind / sha256[:2] / sha256

    def _write(self, path: Path, arrays: dict[str, Tensor]) -> None:
        content = save(arrays)
        while len(content) > self._room:
            if not self._drop_another():
                return
        self._room -= len(content)
        # Under a name of its own: another process may be writing the same.
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        with contextlib.suppress(FileNotFoundError):  # another process that wants room has deleted this store
            path.parent.mkdir(parents=True, exist_ok=True)
            # Not flushed to the disk, which took longer than computing: what a power cut damages is computed again.
            partial.write_bytes(content)
            os.replace(partial, path)

    def _drop_another(self) -> bool:
        """Delete the store of another trunk, the one that was used longest ago; whether there was one."""
        others = [path for path in self.folder.parent.iterdir() if path.is_dir() and path != self.folder]
        if not others:
            return False
        oldest = min(others, key=lambda path: path.stat().st_mtime)
        self._room += _bytes(oldest) // self.runtime.world
        shutil.rmtree(oldest, ignore_errors=True)
        return True


def _named(head: PooledHead) -> str:
    """A name for what a head makes of a trunk's features, which is no matter of what is fitted to it."""
    own = hashlib.sha256()
    for value in head.classes.state_dict().values() if head.classes is not None else ():
        own.update(value.cpu().contiguous().numpy())
    return fingerprint([head.levels, head.pools, own.hexdigest()], ())


def key_of(trunk: Trunk, runtime: Runtime) -> str:
    """A name for all that features depend on beside the picture and the view."""
    weights = hashlib.sha256()
    for name, value in [*trunk.state_dict().items(), ("mean", trunk.mean), ("std", trunk.std)]:
        weights.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        weights.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    shape = [type(trunk).__name__, trunk.stride, trunk.level_strides, _layers(trunk)]
    shape += [[weight.is_contiguous() for weight in trunk.parameters()]]  # another layout in memory may round otherwise
    device = torch.cuda.get_device_name(runtime.device) if runtime.device.type == "cuda" else runtime.device.type
    arithmetic = [device, runtime.precision, torch.get_num_threads(), torch.__version__]
    package = Path(__file__).parents[1]
    sources = [*(package / "networks").rglob("*.py"), *(package / name for name in SOURCES)]
    return fingerprint([shape, weights.hexdigest(), arithmetic], sources)


def _layers(trunk: nn.Module) -> str:
    """What weights do not tell: dilations, strides, activations."""
    return hashlib.sha256(str(trunk).encode()).hexdigest()


def _read(path: Path) -> dict[str, Tensor] | None:
    """What is stored at a path; None where there is nothing, or something damaged."""
    try:
        return load_file(path)
    except (OSError, SafetensorError):
        return None


def _bytes(folder: Path) -> int:
    """What lies in a folder, as far as it stays there while it is looked at."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total
