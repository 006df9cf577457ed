"""ONNX: the file, and a session of onnxruntime that runs it."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segcore.errors import Problem
from segcore.exporting.graphs import Graph, quiet

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
"""What the extra `segcore[onnx]` brings, by the names they are imported by."""

MOST_BYTES = 2**31
"""Of weights in one ONNX file; it is a limit of the format."""


def check_packages() -> None:
    """See that the extra is installed.

    Raises:
        Problem: it is not.
    """
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise Problem(f"--format onnx: {', '.join(missing)} is not installed; run `pip install 'segcore[onnx]'`")


def write(graph: Graph, path: Path) -> None:
    """One file, weights included.

    Raises:
        Problem: an operation has no counterpart in ONNX, or there are 2 GiB of weights.
    """
    size = sum(tensor.nbytes for tensor in graph.program.state_dict.values())
    if size >= MOST_BYTES:
        raise Problem(f"--format onnx: {size / 2**30:.1f} GiB of weights, where one ONNX file holds 2; take pt2")
    try:
        with quiet():
            program: Any = torch.onnx.export(
                graph.program,
                dynamo=True,
                verbose=False,
                input_names=[graph.input_name],
                output_names=[graph.output_name],
            )
            _name_sizes(program, graph)
            program.save(str(path), external_data=False)
    except (RuntimeError, NotImplementedError) as error:
        reason = [line.strip() for line in str(error).splitlines() if line.strip()][-1:]
        raise Problem(f"--format onnx: torch cannot write this graph as ONNX: {''.join(reason)}; take pt2") from error


def _name_sizes(program: Any, graph: Graph) -> None:
    """Sizes that may be any by words, where torch wrote formulas."""
    import onnx_ir

    sides = ("height", "width") if graph.any_size else (graph.side, graph.side)
    batch = "batch" if graph.any_batch else 1
    taken, given = program.model.graph.inputs[0], program.model.graph.outputs[0]
    taken.shape = onnx_ir.Shape([*sides, 3] if graph.takes_pictures else [batch, 3, *sides])
    classes = [] if graph.takes_pictures else [batch, given.shape[1]]
    given.shape = onnx_ir.Shape([*classes, *sides])


class Session:
    """A file in onnxruntime, on the CPU, with as many threads as torch has."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.name: str = self.session.get_inputs()[0].name

    def __call__(self, value: np.ndarray) -> np.ndarray:
        return np.asarray(self.session.run(None, {self.name: value})[0])
