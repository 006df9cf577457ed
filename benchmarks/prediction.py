"""`segcore predict` against the bare network's forward: `python -m benchmarks.prediction [MODEL IMAGES...]`.

The same photographs, the same batches, the same views. The one reads, resizes, predicts, takes the winners at the
photograph's own size, and writes masks, the journal and the table; the other only runs the network, with the layers
that it was trained with, on squares that lie in memory. What `predict` loses beside its own, fused network is told,
too. Without a model: JPEGs of 500 x 375 pixels and DeepLab on EfficientNet-Lite0, as the profile `own` has it, with
random weights, so that more classes win somewhere than in photographs. All keep memory as the command does. Turns
alternate, so that a busy machine slows all alike, and their medians count: by the clock, and in CPU time of the whole
process, which a busy machine changes less.
"""

import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from segcore import memory, projects, systems
from segcore.config.reading import parsed, section
from segcore.config.settings import Settings
from segcore.data.geometry import stretched_square
from segcore.models import systems as finished
from segcore.networks.origin import Origin
from segcore.prediction import listing, run
from segcore.prediction.listing import Photo
from segcore.prediction.model import Model, as_array, load, model_folder

BAR = 0.9
PHOTOS, SIZE, BATCH, TAGS, TURNS = 48, (500, 375), 8, 20, 5


def main() -> int:
    memory.keep()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if len(sys.argv) > 2:
            made, images = model_folder(Path(sys.argv[1])), sys.argv[2:]
        else:
            draw(folder / "photos")
            made, images = random_model(folder / "model"), [str(folder / "photos")]
        weights, photos = made / "model.safetensors", listing.photos(images)
        ratio = compared(load(made), load(made, as_trained=True), weights, photos, folder / "out")
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
    (folder / "prediction.json").write_text(json.dumps({"prediction": how}))
    return folder


def compared(model: Model, trained: Model, weights: Path, photos: Sequence[Photo], out: Path) -> float:
    """How many times the images per second of the network as it was trained `predict` has."""
    squares = [stretched_square(as_array(photo.path), model.card["input_size"]) for photo in photos]
    batches = [torch.stack(squares[first : first + BATCH]).float() for first in range(0, len(photos), BATCH)]
    batches = [batch.to(model.device) for batch in batches]

    def bare(network: Model) -> None:
        for batch in batches:
            network.system.predict(batch)
            if network.views.flip:
                network.system.predict(batch.flip(3)).flip(3)
        if network.device.type == "cuda":
            torch.cuda.synchronize()

    def whole() -> None:
        done = list(run.predict_folder(model, weights, photos, out, run.Wanted(False, False, BATCH, 0, 1, None)))
        assert [outcome.problem for outcome in done] == [None] * len(photos)

    times = []
    for _ in range(TURNS):
        times.append((timed(lambda: bare(trained)), timed(lambda: bare(model)), timed(whole)))
        shutil.rmtree(out)
    clock, cpu = ([statistics.median(one[i] for one in some) for some in zip(*times, strict=True)] for i in (0, 1))
    each = [
        f"{len(photos) / seconds:.1f} images/s, {1000 * busy / len(photos):.1f} ms of CPU time an image"
        for seconds, busy in zip(clock, cpu, strict=True)
    ]
    print(
        f"{len(photos)} photographs, {len(model.classes)} classes, batches of {BATCH}, mirrored too: "
        f"{model.views.flip}, on {model.device} with {torch.get_num_threads()} threads\n"
        f"  bare forward, as trained: {each[0]}\n  bare forward, fused:      {each[1]}\n"
        f"  segcore predict:          {each[2]}\n"
        f"  predict over the network as trained {clock[0] / clock[2]:.2f}x (CPU time {cpu[0] / cpu[2]:.2f}x), "
        f"over the fused one {clock[1] / clock[2]:.2f}x ({cpu[1] / cpu[2]:.2f}x)"
    )
    return clock[0] / clock[2]


def timed(do: Callable[[], None]) -> tuple[float, float]:
    """Seconds by the clock, and of all cores together."""
    begin = time.perf_counter(), time.process_time()
    do()
    return time.perf_counter() - begin[0], time.process_time() - begin[1]


if __name__ == "__main__":
    sys.exit(main())
