"""`segcore predict` against the bare network's forward: `python -m benchmarks.prediction`.

The same photographs (JPEGs of 500 x 375 pixels), the same batches, the same views. The one reads, resizes, predicts,
takes the winners at the photograph's own size, and writes masks, the journal and the table; the other only runs
the network on squares that lie in memory. DeepLab on EfficientNet-Lite0, as the profile `own` has it, with random
weights, which cost the same. Turns alternate, so that a busy machine slows both alike, and the best of each counts.
"""

import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from segcore import projects, systems
from segcore.config.reading import parsed, section
from segcore.config.settings import Settings
from segcore.data.geometry import stretched_square
from segcore.models import systems as finished
from segcore.networks.origin import Origin
from segcore.prediction import listing, run
from segcore.prediction.model import Model, as_array, load

BAR = 0.9
PHOTOS, SIZE, BATCH, TAGS, TURNS = 48, (500, 375), 8, 20, 3


def main() -> int:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        draw(folder / "photos")
        model = load(random_model(folder / "model"))
        ratio = compared(model, folder)
    print(f"    (bar: >= {BAR:g}x)")
    return 0 if ratio >= BAR else 1


def draw(folder: Path) -> None:
    """Photographs of no particular content, as large in JPEG as real ones."""
    folder.mkdir()
    for number in range(PHOTOS):
        noise = np.random.default_rng(number).integers(0, 256, (47, 63, 3), dtype=np.uint8)
        Image.fromarray(noise).resize(SIZE, Image.Resampling.BICUBIC).save(folder / f"{number:03d}.jpg", quality=92)


def random_model(folder: Path) -> Path:
    """A DeepLab of `own` that was never trained, on disk."""
    text = projects.params_yaml(projects.Wishes("own", "images", "lite", False, ("deeplab",)))
    settings = Settings(parsed(text, "params.yaml"))
    entry, name = settings.systems["deeplab"], "deeplab"
    module = systems.load(entry.module)
    training = section({"systems": {name: entry.model_dump()}}, f"systems.{name}.training", module.Training)
    backbone = settings.backbones["lite"].model_copy(update={"weights": "random"})
    tags = [f"class{number}" for number in range(TAGS)]
    torch.manual_seed(0)
    system = module.build(training, Origin(tags, backbone, None))
    card = {"kind": "backbone", "name": "lite", "params": backbone.model_dump(mode="json"), "tags": tags}
    finished.save_system(folder, name, entry.module, entry.training, card, training.network.input_size, system)
    how = parsed(text, "params.yaml")["systems"][name]["prediction"] | {
        "views": settings.views["mirrored"].model_dump()
    }
    import json

    (folder / "prediction.json").write_text(json.dumps({"prediction": how}))
    return folder


def compared(model: Model, folder: Path) -> float:
    """How many times the bare network's images per second `predict` has."""
    photos = listing.photos([str(folder / "photos")])
    wanted = run.Wanted(False, False, BATCH, 0, 1, None)
    squares = [stretched_square(as_array(photo.path), model.card["input_size"]) for photo in photos]
    batches = [torch.stack(squares[first : first + BATCH]).float() for first in range(0, PHOTOS, BATCH)]
    batches = [batch.to(model.device) for batch in batches]
    bare, whole = float("inf"), float("inf")
    for _ in range(TURNS):
        begin = time.perf_counter()
        for batch in batches:
            model.system.predict(batch)
            if model.views.flip:
                model.system.predict(batch.flip(3)).flip(3)
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        bare = min(bare, time.perf_counter() - begin)
        begin = time.perf_counter()
        done = list(run.predict_folder(model, folder / "model/model.safetensors", photos, folder / "out", wanted))
        whole = min(whole, time.perf_counter() - begin)
        assert len(done) == PHOTOS
        shutil.rmtree(folder / "out")
    print(
        f"{PHOTOS} photographs of {SIZE[0]}x{SIZE[1]} pixels, {TAGS + 1} classes, batches of {BATCH}, mirrored too, on "
        f"{model.device} with {torch.get_num_threads()} threads: bare forward {PHOTOS / bare:.1f} images/s, "
        f"segcore predict {PHOTOS / whole:.1f}: {bare / whole:.2f}x"
    )
    return bare / whole


if __name__ == "__main__":
    sys.exit(main())
