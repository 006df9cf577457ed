"""A model as a graph that other runtimes can run: traced by `torch.export`, for any batch and size where it allows."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import jaxtyping
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F

from segcore.errors import Problem
from segcore.exporting import same_padding
from segcore.networks import resizing
from segcore.prediction.model import Model

REASON = 200
"""Characters of what torch says that are told as the reason why a graph is of one size."""


@dataclass(frozen=True)
class Graph:
    """A traced model.

    `takes_pictures`: from uint8 RGB (height, width, 3) to uint8 labels (height, width). Else from float32 RGB in
    0..255, (batch, 3, height, width), to float32 scores (batch, classes, height, width).
    """

    program: ExportedProgram
    takes_pictures: bool
    side: int
    """Of the square that the model was trained to see, in pixels."""
    any_batch: bool
    any_size: bool
    """Of a graph that takes no pictures: whether other sides than `side` are allowed, of the system's steps."""
    why_fixed: str | None
    """Why the batch or the size is fixed, in torch's words."""

    @property
    def input_name(self) -> str:
        return "picture" if self.takes_pictures else "images"

    @property
    def output_name(self) -> str:
        return "labels" if self.takes_pictures else "scores"


class FromPicture(nn.Module):
    """What `segcore predict` does with one picture before a CRF: squares, views, the mean of scores, the greatest.

    Args:
        network: from squares to scores.
        stretched: whether a square is the picture stretched, or padded with black below and to the right.
        sides: of the squares, one for each scale.
        flip: whether each is also predicted mirrored.
    """

    def __init__(self, network: nn.Module, stretched: bool, sides: list[int], flip: bool) -> None:
        super().__init__()
        self.network = network
        self.stretched = stretched
        self.sides = sides
        self.flip = flip

    @torch.no_grad()
    def forward(self, picture: UInt8[Tensor, "H W 3"]) -> UInt8[Tensor, "H W"]:
        height, width = picture.shape[0], picture.shape[1]
        pixels = picture.permute(2, 0, 1).to(torch.float32)
        long: Any = torch.sym_max(height, width)
        size = (height, width) if self.stretched else (long, long)
        total: Tensor | None = None
        for side in self.sides:
            square = self._square(pixels, side)[None]
            scores = self.network(square)
            if self.flip:
                scores = scores + self.network(square.flip(3)).flip(3)
            scores = F.interpolate(scores, size, mode="bilinear")[0, :, :height, :width]
            total = scores if total is None else total + scores
        assert total is not None
        return total.argmax(0).to(torch.uint8)

    def _square(self, pixels: Float[Tensor, "3 H W"], side: int) -> Float[Tensor, "3 S S"]:
        """The picture as OpenCV scales it."""
        lengths = [torch.scalar_tensor(pixels.shape[axis], dtype=torch.float64) for axis in (1, 2)]
        if not self.stretched:
            lengths = [torch.maximum(*lengths)] * 2
        return resizing.opencv(pixels, (lengths[0], lengths[1]), side)


def of_network(model: Model, tags_at_once: int | None) -> Graph:
    """The bare network. Any batch and any size if torch can trace it so, else any batch, else one square.

    Raises:
        Problem: torch cannot trace it at all; the system cannot be exported, and says why.
    """
    system, side = model.system, model.card["input_size"]
    module = system.exportable(tags_at_once).eval()
    step, offset = system.input_step, system.input_offset
    least = -(-(system.smallest_input - offset) // step)
    every = {axis: step * Dim(name, min=least) + offset for axis, name in ((2, "rows"), (3, "columns"))}
    why: str | None = None
    for any_batch, any_size in ((True, True), (True, False), (False, False)):
        # Of two lengths, as torch would take equal ones for the same.
        example = torch.full((2 if any_batch else 1, 3, side, side + step if any_size else side), 127.0)
        free: dict[int, Any] = ({0: Dim("batch", min=1)} if any_batch else {}) | (every if any_size else {})
        try:
            with same_padding.constant(module, side, step) if any_size else nullcontext():
                program = _traced(module, example, free)
        except (RuntimeError, ValueError, TypeError, AssertionError, Problem) as error:
            why = why or _reason(error)
            continue
        return Graph(program, False, side, any_batch, any_size, why)
    raise Problem(f"{model.name}: torch cannot trace this system, so it cannot be exported: {why}")


def of_pictures(model: Model, tags_at_once: int | None) -> Graph:
    """The network with all that goes before and after it, for one picture of any size.

    Raises:
        Problem: it predicts by proposals, which are found outside of any network; torch cannot trace it.
    """
    system = model.system
    if system.proposals:
        raise Problem(
            f"--with-resize: {model.name} predicts by {system.proposals} EdgeBoxes windows, which OpenCV finds outside "
            "of the network; export the bare network, and give it the windows, or set `proposals` to 0"
        )
    sides = [system.side_near(model.card["input_size"] * scale) for scale in model.views.scales]
    network = system.exportable(tags_at_once)
    module = FromPicture(network, system.square == "stretch", sides, model.views.flip).eval()
    try:
        program = _traced(module, torch.full((37, 53, 3), 127, dtype=torch.uint8), {0: Dim.AUTO, 1: Dim.AUTO})
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise Problem(f"--with-resize: torch cannot trace {model.name} with it: {_reason(error)}") from error
    if any(isinstance(length, int) for length in _input_shape(program)[:2]):
        raise Problem(f"--with-resize: torch cannot trace {model.name} for pictures of any size")
    return Graph(program, True, model.card["input_size"], False, True, None)


def _traced(module: nn.Module, example: Tensor, free: dict[int, Any]) -> ExportedProgram:
    with quiet(), _unchecked_shapes(), torch.no_grad():
        return torch.export.export(module, (example,), dynamic_shapes=(free,), strict=False)


def _input_shape(program: ExportedProgram) -> tuple[Any, ...]:
    (name,) = program.graph_signature.user_inputs
    (node,) = (node for node in program.graph.nodes if node.name == name)
    return tuple(node.meta["val"].shape)


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:REASON]


@contextmanager
def _unchecked_shapes() -> Iterator[None]:
    """Without the checks of shapes that tests run with: they would ask of sizes that are open what they are."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


@contextmanager
def quiet() -> Iterator[None]:
    """Without what torch and its exporters say of themselves: a person reads what was checked."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
