"""A new system is one file and one entry: no test of the contract has to be told of it. `test_copies` trains it."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests import warm
from tests.devkit import write_params

PROJECT = Path(__file__).parents[1]

TOY = '''"""Learns from masks and from tags: a score for each class at every cell of the trunk that it starts from."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from segcore.config import systems
from segcore.config.section import InputSize, Positive
from segcore.config.systems import Prediction
from segcore.data.batches import Batch, Mixed
from segcore.data.pictures import IGNORE
from segcore.data.samples import LabelledImages, TaggedImages
from segcore.losses import Term, pixel_cross_entropy
from segcore.networks.backbones import Trunk
from segcore.networks.origin import Origin
from segcore.systems._grid import masks_of
from segcore.systems.contract import Inputs, OpenSystem, Outputs, Supervision


class Training(systems.Training):
    """What training a system with `module: toy` depends on."""

    input_size: InputSize
    tag_weight: Positive


__all__ = ["Prediction", "Training"]


class Toy(OpenSystem):
    """A 1x1 convolution over the trunk."""

    pretrained = ("encoder.",)

    def __init__(self, encoder: Trunk, n_tags: int, params: Training) -> None:
        super().__init__()
        self.params = params
        self.encoder = encoder
        self.norm = nn.BatchNorm2d(encoder.channels)
        self.score = nn.Conv2d(encoder.channels, n_tags + 1, 1)

    @property
    def trunk(self) -> Trunk:
        return self.encoder

    def forward(self, batch: Batch) -> Outputs:
        levels = self.encoder(batch.images).levels
        return Outputs(levels, self.score(self.norm(levels[-1])))

    def terms(self, batch: Batch, outputs: Outputs) -> dict[str, Term]:
        size = batch.images.shape[2:]
        masks = batch.labels.masked_fill(~batch.strong[:, None, None], IGNORE)
        scores = F.interpolate(outputs.scores, size, mode="bilinear")
        pooled = outputs.scores[:, 1:].mean((2, 3)).float()
        tags = F.binary_cross_entropy_with_logits(pooled, batch.tags, reduction="sum") * self.params.tag_weight
        return {"masks": pixel_cross_entropy(scores, masks), "tags": Term(tags, tags.new_tensor(len(batch.ids)))}

    @torch.no_grad()
    def predict(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K H W"]:
        scores = self.score(self.norm(self.encoder(images).top))
        return F.interpolate(scores, images.shape[2:], mode="bilinear").float()


def build(params: Training, origin: Origin) -> Toy:
    """The system with the trunk of a trained classifier, or a fresh one."""
    return Toy(origin.trunk(32), origin.n_tags, params)


def samples(params: Training, inputs: Inputs) -> Mixed:
    """The images of the list with their masks, and the weak ones by their tags."""
    strong, size = inputs.chosen, params.input_size
    weak = [inputs.records[image_id] for image_id in inputs.weak]
    masks = LabelledImages(strong, masks_of(strong), inputs.n_tags, size)
    return Mixed(TaggedImages(weak, inputs.n_tags, size, size), masks)


def supervision(params: Training, labels: str) -> Supervision:
    """Masks and tags."""
    return Supervision(masks=True, tags=True)


def smallest() -> dict[str, Any]:
    """An entry for tests."""
    return {
        "module": "toy",
        "start": "backbones/any",
        "images": "strong",
        "labels": "masks",
        "training": {"recipe": "segmenter", "input_size": 96, "tag_weight": 0.5},
        "prediction": {"views": {"scales": [1.0], "flip": False}, "crf": None},
    }
'''

ENTRY = {
    "module": "toy",
    "start": "backbones/vgg",
    "images": "strong",
    "labels": "masks",
    "training": {"recipe": "segmenter", "input_size": 64, "tag_weight": 0.5},
    "prediction": {"views": "single", "crf": None},
}
TINY: dict[str, Any] = {
    "dataset.classes": 3,
    "dataset.train_images": 24,
    "dataset.val_images": 6,
    "dataset.size": 64,
    "dataset.max_objects": 2,
    "split.strong.images": 2,
    "recipes.segmenter.steps": 4,
    "recipes.segmenter.batch_size": 4,
    "backbones.vgg.width": 0.0625,
    "classifiers": {},
    "pseudo_labels": {},
    "systems": {"toy": ENTRY},
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with one more file, and one entry in its parameters."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("segcore", "stages", "tests", "profiles", "data/embedded"):
        shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "dvc.yaml"):
        shutil.copy(PROJECT / name, folder)
    (folder / "segcore/systems/toy.py").write_text(TOY)
    write_params(folder / "params.yaml", TINY)
    return folder


def run(folder: Path, *command: str) -> str:
    """What a command of this Python says in the copy."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(("GIT_", "DVC_"))}
    environment = own | {
        "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder), "DVC_NO_ANALYTICS": "1", "CUDA_VISIBLE_DEVICES": "",
        "DVC_SITE_CACHE_DIR": str(folder.parent / "site"),
        "PATH": warm.path(),
    }  # fmt: skip
    done = subprocess.run(
        ["python", "-m", *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_no_test_of_the_contract_has_to_be_told_of_a_new_system(copy: Path) -> None:
    files = [f"tests/{name}.py" for name in ("test_systems", "test_models", "test_regularisers")]
    said = run(copy, "pytest", "-v", "-p", "no:cacheprovider", "-k", "toy", *files)
    assert int(said.rpartition(" passed")[0].split()[-1]) > 20, "the new system was not found"
