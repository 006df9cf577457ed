"""The pipeline at the smallest size that still has every part: for tests that run its stages."""

from importlib import import_module
from pathlib import Path
from typing import Any

from segcore.config import reading
from segcore.config.settings import COMMON
from tests.devkit import PARAMS, make_devkit, voc_section, write_params

NAME = "decoupled"
STOCHASTIC = "ficklenet"
SYSTEM = "decouplednet"
RECIPES = tuple(name for name in reading.read(PARAMS)["recipes"] if name != COMMON)


def tiny_params(path: Path, **changes: Any) -> Path:
    """A parameters file for `make_devkit(root / "voc")`: 64-pixel squares, a VGG of a sixteenth of the width."""
    values: dict[str, Any] = {
        "dataset": voc_section("voc"),
        "split.strong.images": 2,
        "crops.per_subset": 6,
        "crops.warp": 72,
        "crops.input_size": 64,
        "recipes.common.warmup_steps": 2,
        "recipes.common.checkpoint_every": 2,
        "backbones.vgg.width": 0.0625,
        "backbones.vgg_fine.width": 0.0625,
        "networks.mirror.width": 0.0625,
        "networks.mirror.norm_batches": 3,
        "networks.mirror.norm_batch_size": 4,
        "networks.grid.width": 16,
        "networks.grid.input_size": 65,
        "systems.deconvnet.training.kernel": 2,
        "systems.deconvnet.training.padding": 0,
        "evaluation.batch_size": 2,
        "evaluation.panels": 3,
    }
    for recipe in RECIPES:
        values |= {f"recipes.{recipe}.steps": 6, f"recipes.{recipe}.batch_size": 4}
    for name in ("decoupled", "decoupled_str"):
        head = {"head.width": 16, "head.kernel": 2, "head.padding": 0}
        values |= _below(f"classifiers.{name}", head | {"input_size": 64, "test_size": 64, "resize": 72})
    values |= _below("classifiers.ficklenet", {"head.kernel": 3, "input_size": 65, "test_size": 65, "resize": 72})
    for name in ("ficklenet", "deterministic"):
        values |= _below(f"pseudo_labels.{name}", {"input_size": 65, "passes": 5, "batch_size": 2})
    return write_params(path, values | changes)


def _below(section: str, values: dict[str, Any]) -> dict[str, Any]:
    return {f"{section}.{key}": value for key, value in values.items()}


def arguments(stage: str) -> dict[str, Any]:
    """The keyword arguments of a stage's `main`, with paths from the folder of the tiny pipeline."""
    manifest, classes, split = Path("data/manifest.parquet"), Path("data/classes.json"), Path("split")
    known = {"manifest": manifest, "classes": classes, "split": split}
    return {
        "check_params": {"data": Path()},
        "prepare": {"out": Path("data")},
        "split": {"manifest": manifest, "classes": classes, "out": split, "masks": Path("masks")},
        "train_classifier": known | {"name": NAME, "out": Path("classifier")},
        "make_crops": known | {"out": Path("crops")},
        "extract_pseudo_labels": known | {
            "name": STOCHASTIC, "input": Path("stochastic"), "out": Path("pseudo_labels"),
        },
        "train_segmenter": known | {
            "system": SYSTEM, "labels": Path("crops"), "start": Path("classifier"), "out": Path("segmenter"),
        },
        "evaluate": known | {"system": SYSTEM, "model": Path("segmenter/model"), "out": Path("results")},
    }[stage]  # fmt: skip


STAGES = ("prepare", "split", "train_classifier", "make_crops", "train_segmenter", "evaluate")


def run_stages(*stages: str, **changes: Any) -> None:
    """Run stages one after the other in the working directory, into the folders that `arguments` names.

    `check_params`, which none of the others needs, writes params/, and backbones/<name> for systems to start from.
    """
    for stage in stages:
        room = "segcore.commands" if stage == "check_params" else "stages"
        import_module(f"{room}.{stage}").main(**arguments(stage) | changes)


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
