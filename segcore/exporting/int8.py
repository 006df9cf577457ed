"""8-bit weights by onnxruntime's dynamic quantisation, and what they cost.

Weights are rounded once, activations as they come; no calibration is needed. What it does to a network is measured and
not assumed: small ones with depthwise convolutions lose most.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from segcore.errors import Problem
from segcore.evaluation.metrics import ConfusionMatrix
from segcore.exporting import agreement
from segcore.exporting.agreement import Pixels, Run
from segcore.exporting.graphs import Graph, quiet
from segcore.prediction.model import Model


@dataclass(frozen=True)
class Loss:
    """mIoU of both files on the same pictures, and their sizes and times."""

    file: str
    """Name of the one with 8 bits."""
    pictures: int
    mean_iou: float
    mean_iou_int8: float
    bytes: int
    bytes_int8: int
    milliseconds_int8: float


def write(source: Path, path: Path) -> None:
    """An ONNX file with 8-bit weights, of one with floats.

    Weights that the graph computes of others (a kernel turned or scaled) are computed once before: onnxruntime
    quantises stored ones alone.

    Raises:
        Problem: onnxruntime cannot quantise it.
    """
    from onnxruntime.quantization import QuantType, quant_pre_process, quantize_dynamic

    folded = path.with_name(f".{path.name}.folded")
    try:
        with quiet():
            quant_pre_process(source, folded, skip_symbolic_shape=True)
            # Unsigned: onnxruntime's convolutions know no signed 8-bit weights.
            quantize_dynamic(folded, path, weight_type=QuantType.QUInt8)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise Problem(f"--int8: onnxruntime cannot quantise {source.name} ({error}); leave it out") from error
    finally:
        folded.unlink(missing_ok=True)


def measured(
    runs: tuple[Run, Run],
    files: tuple[Path, Path],
    graph: Graph,
    model: Model,
    pairs: Sequence[tuple[Pixels, UInt8[np.ndarray, "_ _"]]],
) -> Loss:
    """What 8 bits cost; both runs, files: with floats, with 8 bits. `pairs` are pictures with their masks."""
    counts = [ConfusionMatrix(len(model.classes)) for _ in runs]
    for picture, truth in pairs:
        for count, run in zip(counts, runs, strict=True):
            count.update(truth, agreement.labels(run, graph, model, picture))
    with_floats, with_8_bits = (round(count.mean_iou, 4) for count in counts)
    sizes = [file.stat().st_size for file in files]
    time = agreement.milliseconds(runs[1], graph, model, pairs[0][0])
    return Loss(files[1].name, len(pairs), with_floats, with_8_bits, sizes[0], sizes[1], time)
