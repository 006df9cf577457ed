"""Turn what is known of whole images into labels of their pixels: cues at the grid of a network, and at full size.

Reads the manifest, the class names, a list of the split and the source: a classifier, whose localisation maps are
merged (Lee et al. 2019, section 3.2), a segmenter, whose predictions are labels to train again on, or somebody's cues.
Writes `cues/` (indexed PNGs of the grid), `labels/` (of the images' own size), `images.txt`, `quality.json` (measured
on the masks where there are any) and `figure.png`. What is done stays in the scratch folder until all of it is: a run
that was killed goes on there.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from rich.progress import track

from segcore import files, seeds
from segcore.cli import command, console, provenance
from segcore.config.sections import CropsParams, PseudoLabelParams
from segcore.data import pseudo_labels
from segcore.data.geometry import stretched_square
from segcore.data.manifest import Record, listed, read_class_names, read_manifest
from segcore.data.pictures import labels_png, read_image, read_labels
from segcore.data.pseudo_labels import CuesFile
from segcore.errors import Problem
from segcore.evaluation import inference
from segcore.evaluation.quality import Quality
from segcore.localisation import background
from segcore.localisation.labeller import PseudoLabeller
from segcore.models.classifiers import load_classifier
from segcore.models.systems import load_system
from segcore.processes import Runtime
from segcore.reporting import panels

Labels = UInt8[np.ndarray, "H W"]
Extract = Callable[[Sequence[Record]], list[tuple[Labels, Labels]]]
"""The cues at the grid and the labels at full size of some images."""

STRIDE = 8
"""Pixels of an input to a cell of the grid: 321 give 41."""
FIGURE_ROWS = 6


def main(
    *,
    name: str,
    manifest: Path,
    classes: Path,
    split: Path,
    input: Path,
    out: Path,
    params: Path = Path("params.yaml"),
) -> None:
    settings = command.settings(params)
    entry = settings.pseudo_labels[command.chosen(name, settings.pseudo_labels, "pseudo-label set")]
    names: list[str] = read_class_names(classes)
    records = read_manifest(manifest)
    chosen = [records[image_id] for image_id in listed(split / f"{entry.images}.txt", records)]
    saliency = check(chosen, entry)
    device = Runtime()
    with provenance.timed(f"extract_pseudo_labels@{name}"):
        seed = seeds.derived_seed(settings.seed, "pseudo-labels")
        extract = extractor(entry, input, names, chosen, seed, device, settings.crops)
        key = files.fingerprint(
            [name, seed, entry.model_dump(), settings.crops.model_dump(), torch.__version__],
            [manifest, split / f"{entry.images}.txt", *provenance.files_in(input), *saliency, *provenance.sources()],
        )
        scratch = Path(".scratch") / f"pseudo-labels-{name}-{key}"
        work(chosen, extract, entry.batch_size, scratch, device)
        if device.is_main:
            finish(chosen, names, scratch, out)


def check(records: Sequence[Record], entry: PseudoLabelParams) -> list[Path]:
    """See what can be wrong before work starts; gives the files of the saliency maps, if such are used.

    Raises:
        Problem: no images, or a folder of saliency maps that lacks some.
    """
    if not records:
        raise Problem(f"the list of {entry.images} images is empty; run `dvc repro split`")
    if entry.source != "classifier" or entry.background != "saliency":
        return []
    root, ids = Path(entry.saliency_root or ""), [record.image_id for record in records]
    background.check_saliency(root, ids)
    return [background.saliency_file(root, image_id) for image_id in ids]


def extractor(
    entry: PseudoLabelParams,
    path: Path,
    names: list[str],
    chosen: Sequence[Record],
    seed: int,
    device: Runtime,
    crops: CropsParams,
) -> Extract:
    """How the entry's source labels the chosen images."""
    if entry.source == "cues_file":
        return from_cues(CuesFile(path), entry, names, chosen)
    if entry.source == "segmenter":
        return from_segmenter(entry, path, names, device, crops)
    classifier, _, tags = load_classifier(path, device.device)
    _same_classes(path, tags, names)
    label = PseudoLabeller(classifier, entry, seed, device.device)

    def extract(records: Sequence[Record]) -> list[tuple[Labels, Labels]]:
        squares = [stretched_square(read_image(record.image), entry.input_size) for record in records]
        images = torch.stack(squares).float().to(device.device)
        cues = label(images, [r.tags for r in records], [r.image_id for r in records]).cpu().numpy()
        return [(c, pseudo_labels.full_size(c, r.height, r.width)) for c, r in zip(cues, records, strict=True)]

    return extract


def from_cues(file: CuesFile, entry: PseudoLabelParams, names: list[str], chosen: Sequence[Record]) -> Extract:
    """Published cues, as they are.

    Raises:
        Problem: an image lacks cues, or they are of another grid or of other classes.
    """
    file.check([record.image_id for record in chosen], len(names))
    cells = -(-entry.input_size // STRIDE)
    height, width = file.labels(chosen[0].image_id).shape
    if (height, width) != (cells, cells):
        raise Problem(
            f"{file.path}: found cues of {width} x {height} cells; an input_size of {entry.input_size} has "
            f"{cells} x {cells}; set input_size to {STRIDE * height - 7}"
        )

    def extract(records: Sequence[Record]) -> list[tuple[Labels, Labels]]:
        cues = [file.labels(record.image_id) for record in records]
        return [(c, pseudo_labels.full_size(c, r.height, r.width)) for c, r in zip(cues, records, strict=True)]

    return extract


def from_segmenter(
    entry: PseudoLabelParams, path: Path, names: list[str], device: Runtime, crops: CropsParams
) -> Extract:
    """A system's predictions, refined by a CRF if asked for, restricted to the tags of the image if asked for."""
    system, card = load_system(path, device.device)
    _same_classes(path, card["classifier"]["tags"], names)
    cells = -(-entry.input_size // STRIDE)

    def extract(records: Sequence[Record]) -> list[tuple[Labels, Labels]]:
        images = [read_image(record.image) for record in records]
        scores = inference.score_maps(system, images, entry.input_size, entry.scales, entry.flip, crops)
        done = []
        for record, image, score in zip(records, images, scores, strict=True):
            allowed = [0, *record.tags] if entry.restrict_to_tags else range(len(names))
            labels = inference.restricted(system, score, list(allowed), image, entry.crf)
            shrunk = Image.fromarray(labels).resize((cells, cells), Image.Resampling.NEAREST)
            done.append((np.asarray(shrunk), labels))
        return done

    return extract


def _same_classes(path: Path, tags: list[str], names: list[str]) -> None:
    if tags != names[1:]:
        raise Problem(f"{path} was trained for {tags}, but the data set has {names[1:]}; train it again")


def work(records: Sequence[Record], extract: Extract, batch_size: int, scratch: Path, device: Runtime) -> None:
    """Label this process's share of the images, whole batches only: what a batch holds never depends on a restart."""
    for folder in ("cues", "labels"):
        (scratch / folder).mkdir(parents=True, exist_ok=True)
    mine = device.shard(records, batch_size)
    batches = [mine[first : first + batch_size] for first in range(0, len(mine), batch_size)]
    quiet = not (console.is_main_process() and console.console.is_terminal)
    watched = track(batches, "pseudo-labels", console=console.console, disable=quiet, transient=True)
    for batch in watched:
        if all(file.is_file() for record in batch for file in _files(scratch, record)):
            continue
        for record, found in zip(batch, extract(batch), strict=True):
            for file, content in zip(_files(scratch, record), found, strict=True):
                file.parent.mkdir(parents=True, exist_ok=True)
                files.write_atomically(file, labels_png(content))
    device.wait()


def _files(folder: Path, record: Record) -> tuple[Path, Path]:
    """Where the cues and the labels of an image are."""
    return pseudo_labels.cue_file(folder, record.image_id), pseudo_labels.label_file(folder, record.image_id)


def finish(records: Sequence[Record], names: list[str], scratch: Path, out: Path) -> None:
    """Measure, draw, and move everything to its place."""
    quality = Quality(len(names))
    for record in records:
        if record.labels is not None:
            pseudo = read_labels(pseudo_labels.label_file(scratch, record.image_id))
            quality.update(read_labels(record.labels), pseudo)
    summary = quality.summary(names)
    files.write_atomically(scratch / pseudo_labels.LIST, "".join(f"{r.image_id}\n" for r in records).encode())
    figure(records, names, scratch).save(scratch / "figure.png", format="PNG", optimize=True)
    files.write_atomically(scratch / "quality.json", (json.dumps(summary, indent=2) + "\n").encode())
    out.mkdir(parents=True, exist_ok=True)
    # The list, by which others know the folder, goes first and comes last.
    (out / pseudo_labels.LIST).unlink(missing_ok=True)
    for part in ("cues", "labels", "figure.png", "quality.json", pseudo_labels.LIST):
        if (out / part).is_dir():
            shutil.rmtree(out / part)
        shutil.move(scratch / part, out / part)  # they may be on different disks
    shutil.rmtree(scratch, ignore_errors=True)
    console.say(
        f"pseudo-labels of {len(records)} images in {out}: precision {summary['precision']}, "
        f"recall {summary['recall']}, coverage {summary['coverage']}"
    )


def figure(records: Sequence[Record], names: list[str], folder: Path) -> Image.Image:
    """A few images with masks, spread over the list: image, truth, pseudo-labels, errors."""
    shown = [record for record in records if record.labels is not None] or list(records)
    places = np.linspace(0, len(shown) - 1, min(FIGURE_ROWS, len(shown)))
    pages = []
    for record in (shown[round(place)] for place in places):
        pseudo = read_labels(pseudo_labels.label_file(folder, record.image_id))
        truth = read_labels(record.labels) if record.labels is not None else np.full_like(pseudo, 255)
        picture = read_image(record.image)
        pages.append(panels.panel(picture, truth, pseudo, names, record.image_id, "pseudo-labels"))
    return panels.stacked(pages)


if __name__ == "__main__":
    command.start(main)
