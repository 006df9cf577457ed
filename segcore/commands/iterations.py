"""How the steps of inference at training and at prediction make up for each other: a table and a figure.

Luo et al., ICCV 2017, section 3, "An Interesting Finding": more steps in one allow fewer in the other. Predicts the
validation images by finished models of DIS, each at several numbers of steps; by default those that lie in the data
set's folder. Models with other numbers of steps at training are entries of their own, or copies of a model's folder.
Writes `iterations.csv` and `iterations.png` into `out`. No stage of the pipeline.
"""

import io
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from segcore.cli import command, console
from segcore.config.settings import Settings
from segcore.data.manifest import Record, read_class_names, read_manifest
from segcore.errors import Problem
from segcore.evaluation import inference
from segcore.evaluation.reading import Pictures
from segcore.evaluation.scoring import Prediction, score, validation_records
from segcore.files import write_atomically
from segcore.models.cards import read_card
from segcore.models.systems import load_system
from segcore.processes import Runtime

MODULE = "dis"


def main(
    *, out: Path, models: str = "", iterations: str = "0,1,2,5,10,20,30", params: Path = Path("params.yaml")
) -> None:
    """`models` are folders, `iterations` numbers of steps, with commas between them."""
    settings = command.settings(params)
    data = params.parent / "data" / settings.dataset.name
    folders = [Path(folder) for folder in models.split(",")] if models else finished(data, settings)
    numbers = steps_of(iterations)
    records = validation_records(read_manifest(data / "prepared/manifest.parquet"), data / "split/val.txt")
    n_classes = len(read_class_names(data / "prepared/classes.json"))
    lines = pd.DataFrame(line for folder in folders for line in measured(folder, numbers, records, n_classes, settings))
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "iterations.csv", lines.to_csv(index=False).encode())
    write_atomically(out / "iterations.png", figure(lines))
    console.say(lines.to_string(index=False))
    console.say(f"written: {out / 'iterations.csv'}, {out / 'iterations.png'}")


def finished(data: Path, settings: Settings) -> list[Path]:
    """The models of DIS that lie in a data set's folder.

    Raises:
        Problem: there are none.
    """
    systems = [name for name, entry in settings.systems.items() if entry.module == MODULE]
    folders = [data / f"segmenters/{name}/model" for name in systems]
    there = [folder for folder in folders if (folder / "model.json").is_file()]
    if not there:
        raise Problem(f"{data} holds no finished model of module {MODULE}", made_by="train_segmenter")
    return there


def steps_of(text: str) -> list[int]:
    """Whole numbers from 0 up.

    Raises:
        Problem: there is something else.
    """
    parts = [part.strip() for part in text.split(",")]
    if odd := [part for part in parts if not part.isdecimal()]:
        raise Problem(f"iterations: found '{odd[0]}'; give whole numbers from 0 up, with commas between them: 0,5,10")
    return [int(part) for part in parts]


def measured(
    folder: Path, iterations: Sequence[int], records: Sequence[Record], n_classes: int, settings: Settings
) -> Iterator[dict[str, Any]]:
    """A line for each number of steps: mean IoU, and the seconds that an image took.

    Raises:
        Problem: the model is none of DIS, or has no entry in the parameters.
    """
    card = read_card(folder, "system")
    name = card["name"]
    if card["module"] != MODULE or name not in settings.systems:
        raise Problem(f"{folder} holds '{name}', which is no entry of params.yaml with `module: {MODULE}`")
    system, _ = load_system(folder, settings.systems[name].prediction, Runtime().device)
    usual, update = system.prediction, card["training"]["weak_update"] or {}

    def predict(images: Pictures) -> list[Prediction]:
        return [Prediction(labels) for labels in inference.predict(system, images, card["input_size"], None)]

    for number in iterations:
        system.prediction = usual.model_copy(update={"iterations": number})
        begin = time.perf_counter()
        scores = score(records, predict, n_classes, settings.evaluation, with_crf=False)
        yield {
            "model": name,
            "at_training": update.get("iterations", 0),
            "at_prediction": number,
            "mean_iou": round(float(scores.confusion.mean_iou), 4),
            "seconds_per_image": round((time.perf_counter() - begin) / len(records), 4),
        }


def figure(lines: pd.DataFrame) -> bytes:
    """Mean IoU over the steps at prediction, a curve for each model, as a PNG."""
    from matplotlib.figure import Figure  # here, as it takes a second to load

    drawing = Figure(figsize=(6, 4), dpi=120, layout="constrained")
    axes = drawing.subplots()
    for _, curve in lines.groupby(["model", "at_training"], sort=False):
        label = f"{curve['model'].iloc[0]}, {curve['at_training'].iloc[0]} at training"
        axes.plot(curve["at_prediction"], 100 * curve["mean_iou"], marker="o", label=label)
    axes.set(xlabel="steps of inference at prediction", ylabel="mean IoU in per cent")
    axes.grid(alpha=0.3)
    axes.legend()
    png = io.BytesIO()
    drawing.savefig(png, format="png")
    return png.getvalue()


if __name__ == "__main__":
    command.start(main)
