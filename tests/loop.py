"""A small network, small pictures and a training run of them: for tests of the loop."""

import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from segcore.config.training import RecipeParams
from segcore.data.batches import Batch, Sample
from segcore.losses import Term, pixel_cross_entropy
from segcore.networks.dropout import KeyedDropout
from segcore.processes import Runtime
from segcore.training.fit import Fit


def recipe(**changes: Any) -> RecipeParams:
    values: dict[str, Any] = {
        "steps": 8, "batch_size": 4, "sampling": {"kind": "uniform"}, "accumulate": 1,
        "optimizer": "sgd", "learning_rate": 0.05, "momentum": 0.9,
        "weight_decay": 0.01, "bias_multiplier": 2.0, "multipliers": {"pretrained": 0.5}, "warmup_steps": 2,
        "schedule": {"kind": "poly", "power": 0.9}, "clip_norm": None, "precision": "fp32",
        "channels_last": False, "compile": False, "checkpoint_every": 3, "workers": 0,
    }  # fmt: skip
    return RecipeParams.model_validate(values | changes)


class Pictures:
    """Small pictures with two classes; every second one is unknown in its right half."""

    def __init__(self, count: int = 10, size: int = 16) -> None:
        self.count = count
        self.size = size

    def __len__(self) -> int:
        return self.count

    def sample(self, index: int, seed: int) -> Sample:
        rng = np.random.default_rng([index, seed])
        size = self.size, self.size
        labels = torch.from_numpy(rng.integers(0, 2, size, dtype=np.uint8))
        image = labels * 150 + torch.from_numpy(rng.integers(0, 50, size, dtype=np.uint8))
        labels = labels.clone()
        if index % 2:
            labels[:, self.size // 2 :] = 255
        return Sample(
            f"picture_{index}", image.expand(3, *size).contiguous(), torch.tensor([1.0, float(index % 3 == 0)]), labels
        )


class Net(nn.Module):
    """Batch normalisation, dropout of our kind and of torch's, two terms with different weights."""

    pretrained = ("trunk.",)
    groups: Mapping[str, tuple[str, ...]] = {}

    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__()
        self.trunk = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = KeyedDropout(dropout)
        self.foreign_drop = nn.Dropout(dropout)
        self.pixels = nn.Conv2d(4, 2, 1)
        self.tags = nn.Linear(4, 2)

    def losses(self, batch: Batch) -> dict[str, Term]:
        x = self.foreign_drop(self.drop(F.relu(self.norm(self.trunk(batch.images / 255)))))
        tags = F.binary_cross_entropy_with_logits(self.tags(x.mean((2, 3))).float(), batch.tags, reduction="sum")
        return {
            "pixels": pixel_cross_entropy(self.pixels(x), batch.labels),
            "tags": Term(tags, tags.new_tensor(len(batch.ids))),
        }


class Linear(nn.Module):
    """Without batch normalisation and dropout, every way to cut a batch must give the same."""

    pretrained = ()
    groups: Mapping[str, tuple[str, ...]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def losses(self, batch: Batch) -> dict[str, Term]:
        scores = self.layer(batch.images.mean((2, 3)) / 255)
        total = F.binary_cross_entropy_with_logits(scores, batch.tags, reduction="sum")
        return {"tags": Term(total, total.new_tensor(len(batch.ids)))}


def net(dropout: float = 0.3) -> Net:
    torch.manual_seed(5)
    return Net(dropout)


def fit(model: nn.Module, checkpoint: Path | None = None, samples: Any = None, **changes: Any) -> Fit:
    return Fit(model, Pictures() if samples is None else samples, recipe(**changes), 1, Runtime(), checkpoint)


def trained(model: nn.Module, checkpoint: Path | None = None, **changes: Any) -> list[dict[str, float]]:
    return [progress.losses for progress in fit(model, checkpoint, **changes)]


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
