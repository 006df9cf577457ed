"""Hundreds of bad inputs, drawn from seeds: each must be told in one clear error, or change nothing.

`python -m tests.faults --count 500 --seed 0` prints what came of them; `tests/test_faults.py` runs some of them.
Everything runs in one process: the stages that read data sets, and the functions that read what stages wrote.
"""

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from rich.console import Console
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file

from segcore.cli import command, console, provenance
from segcore.config.settings import load
from segcore.data.manifest import listed, read_class_names, read_manifest
from segcore.data.pictures import read_labels, write_labels
from segcore.data.pseudo_labels import CuesFile
from segcore.errors import Problem
from segcore.models.classifiers import load_classifier, save_classifier
from segcore.networks import pretrained
from segcore.reporting import page, results
from segcore.systems._crops import crop_samples
from segcore.systems.contract import Inputs
from segcore.training import checkpoints
from stages import prepare, split
from tests import invented
from tests.devkit import PARAMS, changed, make_devkit, voc_section, write_params
from tests.networks import backbone, tiny_classifier

SECONDS = 30
FINE = ("told", "unchanged")
"""What may come of a fault."""

INSIDE = ("BytesIO", ".partial", " object at 0x")
"""What no message tells a person."""

Rng = random.Random
Act = Callable[[], object]


@dataclass(frozen=True)
class Fault:
    """A bad input: what it is, how it is made, what then reads it; `told` if it may not end well without a word."""

    name: str
    make: Act
    read: Act
    told: bool = True
    slight: bool = False
    """Whether it may hit what nobody reads, and so change nothing."""


class LateError(BaseException):
    """Time is up; no OSError, as `TimeoutError` is."""


@dataclass(frozen=True)
class Outcome:
    """What came of a fault: `told`, `unchanged`, or one of the three that may not be."""

    fault: str
    kind: str
    said: str
    seconds: float


class Project:
    """A folder in which everything is in order, and the faults that can be made in it."""

    def __init__(self, folder: Path) -> None:
        """Make it; the working directory must be `folder`."""
        self.folder = folder
        make_devkit(Path("kit"))
        self.tags = {file.stem: self._shown(file) for file in sorted(Path("kit/SegmentationClass").iterdir())}
        Path("kit/Annotations").mkdir()
        for image_id, tags in self.tags.items():
            objects = "".join(f"<object><name>{name}</name></object>" for name in tags.split())
            Path(f"kit/Annotations/{image_id}.xml").write_text(f"<annotation>{objects}</annotation>")
        lines = [f"{image_id},{tags}" for image_id, tags in self.tags.items()]
        Path("kit/tags.csv").write_text("\n".join(["image_id,tags", *lines, ""]))
        self.params("masks")
        self.prepared()
        self.chosen()
        self.records = read_manifest(Path("prepared/manifest.parquet"))
        self.train = [image_id for image_id, record in self.records.items() if record.split == "train"]
        labels = np.full((len(self.train), 13, 13), 255, np.uint8)
        labels[:, 0, :3] = [[0, self.records[one].tags[0], 255] for one in self.train]
        np.savez("cues.npz", image_ids=np.array(self.train), labels=labels)
        self.crops()
        self.models()
        invented.invented_results(folder / "report", images=3, panels=1)

    @staticmethod
    def _shown(mask: Path) -> str:
        names = ("background", "circle", "square", "star")
        return " ".join(names[one] for one in np.unique(read_labels(mask)) if 0 < one < 255)

    def params(self, tags: str, **more: Any) -> None:
        source = {"masks": {"kind": "masks"}, "csv": {"kind": "csv", "file": "tags.csv"}}
        source["annotations"] = {"kind": "annotations", "difficult": "count"}
        section = voc_section("kit") | {"tags": source[tags]} | more
        write_params(Path("params.yaml"), {"dataset": section, "split.strong.images": 1})

    def prepared(self) -> bytes:
        prepare.main(out=Path("prepared"))
        return Path("prepared/manifest.parquet").read_bytes()

    def chosen(self) -> list[bytes]:
        folder = Path("prepared")
        manifest, classes = folder / "manifest.parquet", folder / "classes.json"
        split.main(manifest=manifest, classes=classes, out=Path("split"), masks=Path("masks"))
        return [Path(f"split/{name}.txt").read_bytes() for name in ("strong", "weak", "val")]

    def crops(self) -> None:
        Path("crops").mkdir()
        rows = {"image_id": self.train[:2] * 4, "labels": [[1], [2]] * 4}
        sides = {"x1": [0, 1] * 4, "y1": [0, 1] * 4, "x2": [40, 48] * 4, "y2": [40, 40] * 4}
        pq.write_table(pa.table(rows | sides), "crops/crops.parquet", write_page_checksum=True)

    def models(self) -> None:
        params = load(PARAMS).classifiers["decoupled"]
        classifier = tiny_classifier("vgg16", n_tags=3)
        head = params.head.model_copy(update={"width": 24, "kernel": 2, "padding": 0, "batch_norm": False})
        params = params.model_copy(update={"backbone": backbone(), "head": head})
        save_classifier(Path("model"), "decoupled", params, ["circle", "square", "star"], classifier)
        save_file(classifier.trunk.state_dict(), "weights.safetensors")
        torch.save(classifier.trunk.state_dict(), "weights.pth")
        state = {
            "model": {"a": torch.zeros(3)},
            "optimiser": {"state": {}, "param_groups": []},
            "history": [{"a": 1.0}],
            "worlds": [1],
            "run": "",
        }
        checkpoints.save(Path("state.pt"), state)

    # --- readers

    def read_lists(self) -> list[list[str]]:
        return [[*listed(Path(f"split/{name}.txt"), self.records)] for name in ("strong", "weak")]

    def read_crops(self) -> Any:
        inputs = Inputs(self.records, self.train, self.train, "strong", Path("crops"), 3, load(PARAMS).crops, 0)
        samples = crop_samples(inputs)
        return samples.image_ids, samples.subsets, samples.boxes.tolist()

    def read_cues(self) -> Any:
        file = CuesFile(Path("cues.npz"))
        file.check([self.records[one] for one in self.train], ["background", "circle", "square", "star"], 97)
        return [file.labels(one).tolist() for one in self.train]

    def read_model(self) -> Any:
        model, params, tags = load_classifier(Path("model"), torch.device("cpu"))
        return [value.sum().item() for value in model.state_dict().values()], params, tags

    def read_weights(self, file: str) -> Any:
        stored = pretrained.weights_of(backbone(weights=file))
        assert stored is not None
        return [(name, value.sum().item()) for name, value in stored.items()]

    def read_state(self) -> Any:
        found = checkpoints.load(Path("state.pt"))
        if isinstance(found, checkpoints.Unreadable):
            raise Problem(found.reason)
        return str(found)

    def read_report(self) -> str:
        found = results.Results(self.folder / "report/data/shapes", load(PARAMS))
        return page.rendered(found, "", page.Run("here", "abc", {}, {}))

    # --- faults

    def drawn(self, rng: Rng) -> Fault:
        """One of all faults."""
        kinds = (
            self.picture, self.mask, self.mask, self.ids, self.classes, self.table, self.annotation, self.value,
            self.manifest, self.artifact, self.artifact, self.card, self.report,
        )  # fmt: skip
        return rng.choice(kinds)(rng)

    def picture(self, rng: Rng) -> Fault:
        file = Path(f"kit/JPEGImages/{rng.choice([*self.tags])}.jpg")
        makes: dict[str, Act] = {
            "two endings": lambda: shutil.copy(file, file.with_suffix(rng.choice([".png", ".jpeg", ".JPG"]))),
            "another ending": lambda: file.rename(file.with_suffix(rng.choice([".tif", ".bmp", ".webp", ".gif"]))),
            "a strip": lambda: Image.new("L", (rng.choice([1, 2]), 400)).save(file),
            "another size": lambda: Image.open(file).resize((rng.randrange(20, 47), 40)).save(file),
            "12 bits": lambda: (file.unlink(), _wide(file.with_suffix(".png"), 2 ** rng.choice([10, 12, 14]))),
            "another picture's spelling": lambda: file.rename(file.with_name(f"{file.stem} .jpg")),
            **_no_file(file, rng),
        }
        name = rng.choice([*makes])
        return Fault(f"picture: {name}", makes[name], self._prepare("masks"))

    def mask(self, rng: Rng) -> Fault:
        file = Path(f"kit/SegmentationClass/{rng.choice([*self.tags])}.png")
        part = rng.choice(["train", "val"])
        labels = read_labels(file)
        other = next(one for one in (1, 2, 3) if not (labels == one).any())
        exif = Image.Exif()
        exif[0x0112] = rng.randrange(2, 9)
        makes: dict[str, Act] = {
            "0 and 255": lambda: [
                write_labels(f, np.where(read_labels(f) > 0, 255, 0).astype(np.uint8)) for f in _all(part)
            ],
            "a class as 255": lambda: [
                write_labels(f, np.where(read_labels(f) == 2, 255, read_labels(f)).astype(np.uint8)) for f in _all("*")
            ],
            "nothing but 0": lambda: [write_labels(f, np.zeros((40, 48), np.uint8)) for f in _all(part)],
            "values that are no class": lambda: write_labels(
                file, np.where(labels == 0, rng.randrange(4, 255), labels)
            ),
            "colours": lambda: Image.open(file).convert("RGB").save(file),
            "a JPEG": lambda: Image.fromarray(labels).convert("L").save(file, format="JPEG"),
            "16 bits": lambda: Image.fromarray(labels.astype(np.uint16)).save(file),
            "1 bit": lambda: Image.fromarray(labels > 0).save(file),
            "turned": lambda: write_labels(file, np.rot90(labels).copy()),
            "an EXIF orientation": lambda: _load(file).save(file, exif=exif),
            "another ending": lambda: file.rename(file.with_suffix(rng.choice([".PNG", ".bmp", ".tif"]))),
            "two endings": lambda: shutil.copy(file, file.with_suffix(rng.choice([".PNG", ".bmp", ".tif"]))),
            "another class than the tags": lambda: write_labels(file, np.where(labels == 0, other, labels)),
            **_no_file(file, rng),
        }
        name = rng.choice([*makes])
        tags = (
            "csv"
            if name in ("0 and 255", "a class as 255", "nothing but 0", "another class than the tags")
            else "masks"
        )
        return Fault(f"mask: {name}", makes[name], self._prepare(tags))

    def ids(self, rng: Rng) -> Fault:
        file = Path(f"kit/ImageSets/Segmentation/{rng.choice(['train', 'val'])}.txt")
        text = file.read_text()
        first = text.split()[0]
        odd = rng.choice(
            [
                f"{first}.jpg",
                "../../x",
                "/etc/passwd",
                "a b",
                "train (0)",
                "x" * 250,
                ".x",
                "a\u200bb",
                "a\\b",
                "..",
                first,
            ]
        )
        other = Path(f"kit/ImageSets/Segmentation/{'val' if file.stem == 'train' else 'train'}.txt")
        makes: dict[str, Act] = {
            "an odd id": lambda: file.write_text(f"{text}{odd}\n"),
            "an id of both": lambda: file.write_text(text + other.read_text().split()[0] + "\n"),
            "an id that is not there": lambda: file.write_text(f"{text}nobody\n"),
            "UTF-16": lambda: file.write_text(text, "utf-16"),
            "blank lines": lambda: file.write_text("\n \n"),
            **_no_file(file, rng),
        }
        name = rng.choice([*makes])
        return Fault(f"list: {name}", makes[name], self._prepare("masks"))

    def classes(self, rng: Rng) -> Fault:
        file = Path("kit/classes.txt")
        text = file.read_text()
        makes: dict[str, Act] = {
            "no background": lambda: file.write_text(text.replace("background\n", "")),
            "a name twice": lambda: file.write_text(text + "star\n"),
            "a name that nothing shows": lambda: file.write_text(text + "moon\n"),
            "too many": lambda: file.write_text(text + "".join(f"c{n}\n" for n in range(300))),
            "UTF-16": lambda: file.write_text(text, "utf-16"),
            "what cannot be seen": lambda: file.write_text(text.replace("star", "st\x07ar")),
            "too few": lambda: file.write_text("background\ncircle\n"),
            **{key: make for key, make in _no_file(file, rng).items() if key != "gone"},
        }
        name = rng.choice([*makes])
        return Fault(f"classes.txt: {name}", makes[name], self._prepare("masks"))

    def table(self, rng: Rng) -> Fault:
        file = Path("kit/tags.csv")
        text = file.read_text()
        header, *lines = text.splitlines()
        place = rng.randrange(len(lines))
        image_id, _, tags = lines[place].partition(",")

        def with_line(line: str) -> str:
            return "\n".join([header, *lines[:place], line, *lines[place + 1 :], ""])

        texts = {
            "another separator": text.replace(",", rng.choice([";", "\t", "|"])),
            "endings": text.replace(",", ".jpg,").replace("image_id.jpg", "image_id"),
            "no column": text.replace("tags", "labels", 1),
            "a column twice": text.replace("image_id,tags", "image_id,tags,tags"),
            "an id twice": with_line(f"{image_id},{tags}\n{image_id},{tags}"),
            "an unknown class": with_line(f"{image_id},{tags} moon"),
            "background": with_line(f"{image_id},background {tags}"),
            "another class": with_line(f"{image_id},{'star' if tags != 'star' else 'circle'}"),
            "no cell": with_line(image_id),
            "commas between tags": with_line(f"{image_id},{tags},star"),
            "a missing line": with_line("").replace("\n\n", "\n"),
            "no tags": with_line(f"{image_id},"),
        }
        makes: dict[str, Act] = {key: lambda new=new: file.write_text(new) for key, new in texts.items()}
        makes |= {"UTF-16": lambda: file.write_text(text, "utf-16"), **_no_file(file, rng)}
        name = rng.choice([*makes])
        return Fault(f"table: {name}", makes[name], self._prepare("csv"))

    def annotation(self, rng: Rng) -> Fault:
        file = Path(f"kit/Annotations/{rng.choice([*self.tags])}.xml")
        text = file.read_text()
        texts = {
            "another root": text.replace("annotation>", "annotations>"),
            "other objects": text.replace("object>", "polygon>"),
            "no names": text.replace("<name>", "<nam>").replace("</name>", "</nam>"),
            "an unknown class": text.replace("<name>", "<name>moon", 1),
            "another picture's": text.replace(
                "<annotation>", "<annotation><size><width>40</width><height>48</height></size>"
            ),
            "a DTD": f"<!DOCTYPE a [<!ENTITY b 'c'>]>{text}",
            "cut": text[: len(text) // 2],
            "JSON": '{"shapes": []}',
            "no objects": "<annotation/>",
        }
        makes: dict[str, Act] = {key: lambda new=new: file.write_text(new) for key, new in texts.items()}
        makes |= {"two": lambda: shutil.copy(file, file.with_suffix(".XML")), **_no_file(file, rng)}
        name = rng.choice([*makes])
        return Fault(f"annotation: {name}", makes[name], self._prepare("annotations"))

    def value(self, rng: Rng) -> Fault:
        content = changed({})
        at, keys = content, []
        while isinstance(at, dict) and at:
            keys.append(rng.choice(sorted(at)))
            at = at[keys[-1]]
        above = content
        for key in keys[:-1]:
            above = above[key]
        how = rng.choice(["gone", "unknown", "a mapping", "odd text", "a list of texts", "NaN"])
        if how == "gone":
            del above[keys[-1]]
        elif how == "unknown":
            above[f"{keys[-1]}x"] = above.pop(keys[-1])
        else:
            odd = {
                "a mapping": {"x": 1},
                "odd text": "\u00a7 ~/no: [such]",
                "a list of texts": ["x", "y"],
                "NaN": float("nan"),
            }
            above[keys[-1]] = odd[how]

        def make() -> None:
            YAML(typ="safe", pure=True).dump(content, Path("params.yaml"))

        # Recipes are completed by `common`; names of lists and folders may be any text.
        free = "recipes" in keys or keys[-1] in ("root", "file") or (keys[-1] == "weights" and how == "odd text")
        read = lambda: str(command.checked(load(Path("params.yaml"))).given)  # noqa: E731
        return Fault(f"value: {'.'.join(keys)} {how}", make, read, told=not free)

    def manifest(self, rng: Rng) -> Fault:
        file = Path("prepared/manifest.parquet")
        lines = pq.read_table(file).to_pylist()
        line = lines[rng.randrange(len(lines))]
        column, odd = rng.choice(
            [
                ("image_id", "../../x"), ("image_id", "a b"), ("image_id", lines[0]["image_id"]), ("image_id", ""),
                ("image", None), ("width", 0), ("height", -3), ("tags", [0]), ("tags", [300]), ("tags", None),
                ("split", "test"), ("label_classes", [0]), ("labels", None), ("image_sha256", None),
            ]
        )  # fmt: skip

        def edited() -> None:
            line[column] = odd
            lines.append(dict(lines[0])) if odd == lines[0]["image_id"] else None
            pq.write_table(pa.Table.from_pylist(lines, pq.read_schema(file)), file)

        makes: dict[str, Act] = {
            f"{column} {odd!r}": edited,
            "no column": lambda: pq.write_table(pq.read_table(file).drop_columns([column]), file),
            **_no_file(file, rng),
        }
        name = rng.choice([*makes])
        return Fault(f"manifest: {name}", makes[name], self.chosen)

    def artifact(self, rng: Rng) -> Fault:
        """A file that a stage or a person made, damaged as disks and downloads do."""
        files: dict[str, Act] = {
            "prepared/manifest.parquet": self.chosen,
            "prepared/classes.json": lambda: read_class_names(Path("prepared/classes.json")),
            "split/strong.txt": self.read_lists,
            "split/weak.txt": self.read_lists,
            "crops/crops.parquet": self.read_crops,
            "cues.npz": self.read_cues,
            "model/model.json": self.read_model,
            "model/model.safetensors": self.read_model,
            "weights.safetensors": lambda: self.read_weights("weights.safetensors"),
            "weights.pth": lambda: self.read_weights("weights.pth"),
            "state.pt": self.read_state,
        }
        file = Path(rng.choice([*files]))
        makes = _no_file(file, rng) | {"cut": lambda: _cut(file, rng), "a byte": lambda: _flip(file, rng)}
        name = rng.choice([*makes])
        # Of plain lists and bare weights nothing is known by which one other letter or number could be told.
        free = (
            name == "a byte" and file.suffix in (".txt", ".json", ".pth", ".safetensors") and file.parts[0] != "model"
        )
        free |= name in ("cut", "empty") and file.suffix == ".txt"
        free |= name in ("gone", "a link") and file.suffix == ".pt"  # a training without a checkpoint begins anew
        return Fault(f"{file}: {name}", makes[name], files[file.as_posix()], told=not free, slight=name == "a byte")

    def card(self, rng: Rng) -> Fault:
        """A card edited by hand, weights that are none, an index of other content."""
        card = json.loads(Path("model/model.json").read_text())
        key = rng.choice(["tags", "params", "name", "kind", "format", "made_of"])
        tensors = load_file("model/model.safetensors")
        name = rng.choice(sorted(tensors))
        value = tensors[name]
        bare = load_file("weights.safetensors")
        odd = rng.choice([float("nan"), float("inf")])
        crop = pq.read_table("crops/crops.parquet")
        place = rng.choice(["x1", "y1", "x2", "y2"])
        boxes = np.full(len(crop), rng.choice([-(10**9), 10**9, 60 if place in ("x1", "y1") else -5]))
        whole = {
            "model": {},
            "optimiser": {"state": {}, "param_groups": []},
            "history": [{"a": 1.0}],
            "worlds": [1],
            "run": "",
        }
        wrong = rng.choice([{"model": 3}, {"optimiser": {}}, {"history": [3]}, {"worlds": ["1"]}, {"run": None}])
        state = rng.choice([{"model": {}}, {"a": 1}, whole | wrong])
        nested = rng.choice(
            [
                {"state_dict": bare},
                {f"module.{key}": value for key, value in bare.items()},
                {"epoch": 3, **bare},
                [1, 2],
                {},
            ]
        )
        makes: dict[str, tuple[Act, Act]] = {
            f"model.json: {key} edited": (
                lambda: Path("model/model.json").write_text(json.dumps(card | {key: rng.choice([None, 7, "x"])})),
                self.read_model,
            ),
            "model.safetensors: no number": (
                lambda: save_file(tensors | {name: torch.full_like(value, odd)}, "model/model.safetensors"),
                self.read_model,
            ),
            "model.safetensors: another type": (
                lambda: save_file(tensors | {name: value.double()}, "model/model.safetensors"), self.read_model,
            ),
            "model.safetensors: another shape": (
                lambda: save_file(tensors | {name: torch.cat([value, value])}, "model/model.safetensors"),
                self.read_model,
            ),
            "model.safetensors: other numbers": (
                lambda: save_file(tensors | {name: value + 1}, "model/model.safetensors"), self.read_model,
            ),
            "weights.pth: nested": (
                lambda: torch.save(nested, "weights.pth"), lambda: self.read_weights("weights.pth"),
            ),
            "weights.pth: no number": (
                lambda: torch.save({k: v * odd for k, v in bare.items()}, "weights.pth"),
                lambda: self.read_weights("weights.pth"),
            ),
            "weights.pth: code": (
                lambda: torch.save({"a": backbone}, "weights.pth"), lambda: self.read_weights("weights.pth"),
            ),
            "state.pt: other content": (lambda: checkpoints.save(Path("state.pt"), state), self.read_state),
            f"crops.parquet: {place}": (
                lambda: pq.write_table(
                    crop.set_column(crop.column_names.index(place), place, pa.array(boxes)), "crops/crops.parquet"
                ),
                self.read_crops,
            ),
            "crops.parquet: ids": (
                lambda: pq.write_table(
                    crop.set_column(0, "image_id", pa.array([rng.choice(["../x", "a b", "nobody"])] * len(crop))),
                    "crops/crops.parquet",
                ),
                self.read_crops,
            ),
            "crops.parquet: labels": (
                lambda: pq.write_table(
                    crop.set_column(1, "labels", pa.array([rng.choice([[0], [9], [-1]])] * len(crop))),
                    "crops/crops.parquet",
                ),
                self.read_crops,
            ),
        }  # fmt: skip
        chosen = rng.choice([*makes])
        return Fault(chosen, *makes[chosen])

    def report(self, rng: Rng) -> Fault:
        data = self.folder / "report/data/shapes"
        system = invented.SYSTEMS[0]
        endings = ("metrics.json", "confusion_counts.csv", "quality.json", ".tsv", ".png", "strong.txt", "dataset.json")
        files = [
            file
            for file in sorted(data.rglob("*"))
            if file.name.endswith(endings) and "prepared/files" not in str(file)
        ]
        file = rng.choice([f for f in files if system in f.parts or "results" not in f.parts])
        makes = {
            key: make
            for key, make in _no_file(file, rng).items()
            if key not in ("gone", "a link", "a folder", "a pipe")
        }
        makes |= {"cut": lambda: _cut(file, rng), "a byte": lambda: _flip(file, rng)}
        if file.suffix == ".json":
            makes["a list"] = lambda: file.write_text(
                rng.choice(["[]", "3", '"x"', '{"iou": 3}', '{"a": [[]]}', "null"])
            )
        name = rng.choice([*makes])
        return Fault(f"{file.relative_to(data)}: {name}", makes[name], self.read_report, told=False)

    def _prepare(self, tags: str) -> Act:
        def read() -> bytes:
            self.params(tags)
            return self.prepared()

        return read


def _all(part: str) -> list[Path]:
    return sorted(Path("kit/SegmentationClass").glob(f"{part}_*.png"))


def _load(file: Path) -> Image.Image:
    image = Image.open(file)
    image.load()
    return image


def _wide(file: Path, top: int) -> None:
    values = np.random.default_rng(0).integers(0, top, (40, 48)).astype(np.uint16)
    Image.fromarray(values).save(file)


def _cut(file: Path, rng: Rng) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: rng.randrange(len(content))])


def _flip(file: Path, rng: Rng) -> None:
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(bytes(content))


def _no_file(file: Path, rng: Rng) -> dict[str, Act]:
    """What lies in the place of a file instead of it."""
    contents = {
        "empty": b"",
        "an LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64,
        "a web page": b"<!DOCTYPE html><title>404</title>",
        "a HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200),
        "zeros": bytes(3000),
        "random bytes": rng.randbytes(500),
    }
    places: dict[str, Callable[[], object]] = {
        "gone": lambda: None,
        "a link": lambda: file.symlink_to("nowhere"),
        "a folder": lambda: file.mkdir(),
        "a pipe": lambda: os.mkfifo(file),
    }
    makes: dict[str, Act] = {key: lambda new=new: file.write_bytes(new) for key, new in contents.items()}
    return makes | {key: lambda place=place: (file.unlink(), place()) for key, place in places.items()}


def judged(project: Project, fault: Fault, whole: Callable[[Act], object]) -> Outcome:
    """Make the fault, see what is said of it, and put everything back."""
    before = whole(fault.read)
    said = io.StringIO()
    begin = time.monotonic()
    former, console.console = console.console, Console(file=said, soft_wrap=True, emoji=False)
    try:
        with kept(project.folder), time_limit(SECONDS):
            fault.make()
            try:
                after = fault.read()
            except (Problem, OSError) as problem:
                text = command.advised(problem) if isinstance(problem, Problem) else command.told(problem)
                kind = "inside" if any(word in text for word in INSIDE) else "told"
                return Outcome(fault.name, kind, text, time.monotonic() - begin)
        kind = "told" if "warning: " in said.getvalue() else "unchanged" if after == before else "changed"
        if fault.told and kind != "told" and not (fault.slight and kind == "unchanged"):
            kind = "silent"
        kind = "told" if kind == "changed" else kind
    except LateError:
        kind = "hang"
    except Exception:
        return Outcome(fault.name, "traceback", traceback.format_exc(), time.monotonic() - begin)
    finally:
        console.console = former
    return Outcome(fault.name, kind, said.getvalue(), time.monotonic() - begin)


@contextlib.contextmanager
def kept(folder: Path) -> Iterator[None]:
    """Everything in the folder is afterwards what it was."""
    copy = folder.with_name(f"{folder.name}.copy")
    if not copy.exists():
        shutil.copytree(folder, copy, symlinks=True)
    try:
        yield
    finally:
        for part in folder.iterdir():
            shutil.rmtree(part) if part.is_dir() and not part.is_symlink() else part.unlink()
        shutil.copytree(copy, folder, symlinks=True, dirs_exist_ok=True)


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    def late(*_: object) -> None:
        raise LateError

    former = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


def run(folder: Path, count: int, seed: int) -> Iterator[Outcome]:
    """`count` faults in a project in `folder`, which must be the working directory."""
    provenance.TIMINGS = folder / ".scratch/timings"
    quiet, console.console = console.console, Console(file=io.StringIO())
    project = Project(folder)
    console.console = quiet
    good: dict[str, object] = {}

    def whole(read: Act) -> object:
        held = [cell.cell_contents for cell in getattr(read, "__closure__", None) or ()]
        key = f"{getattr(read, '__qualname__', '')} {[part for part in held if isinstance(part, str)]}"
        if key not in good:
            former, console.console = console.console, Console(file=io.StringIO())
            with kept(folder):
                good[key] = read()
            console.console = former
        return good[key]

    for number in range(count):
        yield judged(project, project.drawn(Rng(f"{seed}/{number}")), whole)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "project"
        folder.mkdir()
        os.chdir(folder)
        outcomes: list[Outcome] = []
        for number, outcome in enumerate(run(folder, arguments.count, arguments.seed)):
            outcomes.append(outcome)
            if outcome.kind not in FINE:
                print(f"--- {number} {outcome.kind}: {outcome.fault}\n{outcome.said}", flush=True)
        os.chdir("/")
    kinds = Counter(outcome.kind for outcome in outcomes)
    longest = max(outcome.seconds for outcome in outcomes)
    print(f"seed {arguments.seed}, {len(outcomes)} bad inputs: {dict(kinds)}; the longest took {longest:.1f} s")
    return 1 if kinds.keys() - {*FINE} else 0


if __name__ == "__main__":
    raise SystemExit(main())
