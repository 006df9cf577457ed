"""The pipeline at the smallest size that still has every part: for tests that run its stages."""

from pathlib import Path
from typing import Any

from tests.devkit import make_devkit, write_params

NAME = "decoupled"
SYSTEM = "decouplednet"


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
    for recipe in ("classifier", "segmenter"):
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
    for system in ("decouplednet", "decouplednet_str", "deconvnet"):
        entry = f"systems.{system}"
        values |= {f"{entry}.width": 0.0625, f"{entry}.norm_batches": 3, f"{entry}.norm_batch_size": 4}
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
        "train_segmenter": {
            "system": SYSTEM, "manifest": manifest, "crops": crops, "classifier": classifier, "out": Path("segmenter"),
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


def tiny_dataset(root: Path, **changes: Any) -> None:
    """A data set and its `params.yaml` in `root`."""
    root.mkdir(parents=True, exist_ok=True)
    make_devkit(root / "voc", n_train=9, n_val=5)
    tiny_params(root / "params.yaml", **changes)


def files(folder: Path) -> dict[str, bytes]:
    """Every file in `folder`, by its path inside."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
