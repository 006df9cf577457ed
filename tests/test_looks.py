"""Early looks at validation: a curve beside the times of this machine, and not a byte of a training that is another."""

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segcore import systems
from segcore.cli import looks
from segcore.cli.looking import Look, Trained
from segcore.data.pictures import write_labels
from segcore.errors import Problem
from segcore.evaluation import inference
from segcore.processes import Runtime
from tests.devkit import make_record
from tests.networks import N_TAGS, entry, squares, system_of, views
from tests.tiny import SYSTEM, files, run_stages, tiny_dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("looks")
    tiny_dataset(folder)
    here = Path.cwd()
    try:
        os.chdir(folder)
        run_stages("prepare", "split", "make_crops", "train_classifier")
        yield folder
    finally:
        os.chdir(here)


def test_a_training_that_is_looked_at_ends_in_the_same_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = Path("data/segmenters") / SYSTEM
    run_stages("train_segmenter", out=out)
    blind = files(out)
    assert not looks.curves(Path("data"), [SYSTEM])
    monkeypatch.setenv(looks.VARIABLE, "2:3")
    run_stages("train_segmenter", out=out)
    assert files(out) == blind
    steps, values = looks.curves(Path("data"), [SYSTEM, "never_trained"])[SYSTEM]
    assert steps.tolist() == [2, 4, 6]
    assert ((values >= 0) & (values <= 1)).all()
    card = json.loads((out / "model/model.json").read_text())
    card["made_of"]["training"] = "another"
    (out / "model/model.json").write_text(json.dumps(card))
    assert not looks.curves(Path("data"), [SYSTEM]), "a curve of another training is not this model's"


@pytest.mark.parametrize("text", ["200", "0:5", "5:0", "often", "200:100:1"])
def test_what_cannot_be_asked_for_is_a_problem(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(looks.VARIABLE, text)
    with pytest.raises(Problem, match="STEPS:IMAGES"):
        looks.asked()


@pytest.mark.parametrize("module", systems.names())
def test_a_look_touches_nothing_and_sees_the_system_as_it_would_end(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    system = system_of(module, "vgg16").train()
    batch = squares(4)
    count, size = system.finishing_batches()
    records = {}
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"{number}.png")
        write_labels(Path(f"{number}_mask.png"), pixels[..., 0] % (N_TAGS + 1))
        paths = Path(f"{number}.png"), Path(f"{number}_mask.png")
        records[str(number)] = make_record(str(number), *paths, 80, 60, (1, 2, 3, 4, 5), "val")
    Path("val.txt").write_text("0\n1\n")
    given: dict[str, Any] = entry(module)["prediction"]
    about = Trained(
        system, systems.load(module), looks.whole(given), lambda one: iter([squares(size)] * count),
        batch.images.shape[-1], N_TAGS + 1, "fingerprint",
    )  # fmt: skip
    before = {name: value.clone() for name, value in system.state_dict().items()}
    random = torch.get_rng_state()
    look = Look(looks.Asked(1, 2), about, records, Path("val.txt"), Runtime(), Path("out"))
    found = look.score()
    assert torch.equal(torch.get_rng_state(), random)
    assert system.training
    after = system.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    ended = copy.deepcopy(system).eval()
    ended.prediction = look.prediction
    with torch.no_grad():
        ended.finish([squares(size)] * count)
    pictures = [np.asarray(Image.open(f"{number}.png")) for number in range(2)]
    once = ended.prediction.model_copy(update={"views": views(), "crf": None})
    ended.prediction = once
    labels = inference.predict(ended, pictures, batch.images.shape[-1], None)
    truths = [picture[..., 0] % (N_TAGS + 1) for picture in pictures]
    counts = look_counts(truths, labels)
    assert found == pytest.approx(counts, nan_ok=True)


def look_counts(truths: list[np.ndarray], labels: list[np.ndarray]) -> float:
    """mIoU by its definition."""
    truth, label = (np.concatenate([one.ravel() for one in many]) for many in (truths, labels))
    ious = []
    for k in range(N_TAGS + 1):
        union = ((truth == k) | (label == k)).sum()
        if union:
            ious.append(((truth == k) & (label == k)).sum() / union)
    return float(np.mean(ious))
