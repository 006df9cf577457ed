"""The pipeline at the smallest size that still has every part: for tests that run its stages."""

from pathlib import Path
from typing import Any

from segcore.config import reading
from tests.devkit import PARAMS, make_devkit, write_params

NAME = "decoupled"
STOCHASTIC = "ficklenet"
SYSTEM = "decouplednet"
RECIPES = tuple(reading.read(PARAMS)["recipes"])


def tiny_params(path: Path, **changes: Any) -> Path:
    """A parameters file for `make_devkit(root / "voc")`: 64-pixel squares, a VGG of a sixteenth of the width."""
    values: dict[str, Any] = {
        "dataset.layout": "voc",
        "dataset.root": "voc",
        "split.strong_per_class": 2,
        "crops.per_subset": 6,
        "crops.warp": 72,
        "crops.input_size": 64,
        "evaluation.batch_size": 2,
        "evaluation.panels": 3,
    }
    for recipe in RECIPES:
        small = {"steps": 6, "batch_size": 4, "warmup_steps": 2, "checkpoint_every": 2}
        values |= {f"recipes.{recipe}.{key}": value for key, value in small.items()}
    for name in ("decoupled", "decoupled_str"):
        entry = f"classifiers.{name}"
        values |= {f"{entry}.backbone.width": 0.0625, f"{entry}.head.width": 16, f"{entry}.head.kernel": 2}
        values |= {
            f"{entry}.head.padding": 0,
            f"{entry}.input_size": 64,
            f"{entry}.test_size": 64,
            f"{entry}.resize": 72,
        }
    entry = "classifiers.ficklenet"
    values |= {f"{entry}.backbone.width": 0.0625, f"{entry}.head.kernel": 3, f"{entry}.resize": 72}
    values |= {f"{entry}.input_size": 65, f"{entry}.test_size": 65}
    for name in ("ficklenet", "deterministic"):
        entry = f"pseudo_labels.{name}"
        values |= {f"{entry}.input_size": 65, f"{entry}.passes": 5, f"{entry}.batch_size": 2}
    for system in ("decouplednet", "decouplednet_str", "deconvnet"):
        entry = f"systems.{system}"
        values |= {f"{entry}.width": 0.0625, f"{entry}.norm_batches": 3, f"{entry}.norm_batch_size": 4}
    for system in ("deeplab", "sec", "dsrg", "ficklenet", "ficklenet_semi"):
        values |= {f"systems.{system}.width": 16, f"systems.{system}.input_size": 65}
    return write_params(path, values | changes)


def arguments(stage: str) -> dict[str, Any]:
    """The keyword arguments of a stage's `main`, with paths from the folder of the tiny pipeline."""
    manifest, classes, split = Path("data/manifest.parquet"), Path("data/classes.json"), Path("split")
    crops, classifier, model = Path("crops/crops.parquet"), Path("classifier/model"), Path("segmenter/model")
    return {
        "prepare": {"out": Path("data")},
        "split": {"manifest": manifest, "classes": classes, "out": split},
        "train_classifier": {
            "name": NAME, "manifest": manifest, "classes": classes, "split": split, "out": Path("classifier"),
        },
        "make_crops": {"manifest": manifest, "classes": classes, "split": split, "out": Path("crops")},
        "extract_pseudo_labels": {
            "name": STOCHASTIC, "manifest": manifest, "classes": classes, "split": split,
            "input": Path("stochastic/model"), "out": Path("pseudo_labels"),
        },
        "train_segmenter": {
            "system": SYSTEM, "manifest": manifest, "split": split, "labels": crops, "start": classifier,
            "out": Path("segmenter"),
        },
        "evaluate": {
            "system": SYSTEM, "manifest": manifest, "classes": classes, "split": split, "model": model,
            "out": Path("results"),
        },
    }[stage]  # fmt: skip


STAGES = ("prepare", "split", "train_classifier", "make_crops", "train_segmenter", "evaluate")


def run_stages(*stages: str, **changes: Any) -> None:
    """Run stages one after the other in the working directory, into the folders that `arguments` names."""
    from importlib import import_module

    for stage in stages:
        import_module(f"stages.{stage}").main(**arguments(stage) | changes)


def train_stochastic() -> None:
    """Train the classifier that pseudo-labels are extracted from."""
    run_stages("train_classifier", name=STOCHASTIC, out=Path("stochastic"))


def tiny_dataset(root: Path, **changes: Any) -> None:
    """A data set and its `params.yaml` in `root`."""
    root.mkdir(parents=True, exist_ok=True)
    make_devkit(root / "voc", n_train=9, n_val=5)
    tiny_params(root / "params.yaml", **changes)


def files(folder: Path) -> dict[str, bytes]:
    """Every file in `folder`, by its path inside."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
