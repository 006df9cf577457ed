"""Download PASCAL VOC 2012 and the Semantic Boundaries Dataset (SBD), check them, unpack them: `make voc`.

Addresses and MD5 sums are those of torchvision's `VOCSegmentation` and `SBDataset`. What was downloaded or unpacked
before is not fetched again. Adds `ImageSets/Segmentation/trainaug.txt`: VOC's train and all of SBD without VOC's val
(10,582 images), the training set of every paper since. No stage of the pipeline: nothing of it is under DVC.
"""

import contextlib
import http.client
import os
import shutil
import socket
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torchvision.datasets import SBDataset
from torchvision.datasets.utils import calculate_md5, check_integrity, download_url
from torchvision.datasets.voc import DATASET_YEAR_DICT

from segcore.problems import Problem
from segcore.runtime import write_atomically
from stages import run

SILENCE = 60.0
"""Seconds without a byte after which a download counts as failed."""


@dataclass(frozen=True)
class Archive:
    """A file to fetch: what is at `inside` of it goes to `target`, both relative to their roots."""

    url: str
    filename: str
    md5: str
    inside: str
    target: str


_VOC = DATASET_YEAR_DICT["2012"]
VOC = Archive(_VOC["url"], _VOC["filename"], _VOC["md5"], _VOC["base_dir"], "VOCdevkit/VOC2012")
SBD = Archive(SBDataset.url, SBDataset.filename, SBDataset.md5, "benchmark_RELEASE/dataset", "SBD")


def main(*, root: Path) -> None:
    root = root.expanduser()
    try:
        root.mkdir(parents=True, exist_ok=True)
        for archive in (VOC, SBD):
            _provide(archive, root)
        n_images = _write_trainaug(root / VOC.target, root / SBD.target)
    except OSError as error:
        raise Problem(
            f"{error.filename or root}: {error.strerror or error}; what is there stays, run it again"
        ) from error
    run.say(f"trainaug.txt lists {n_images} images; to use them, set in params.yaml:")
    run.say(f"  dataset: layout: voc, root: {root / VOC.target}, sbd_root: {root / SBD.target}, train_list: trainaug")


def _provide(archive: Archive, root: Path) -> None:
    target = root / archive.target
    # A folder appears there by one rename, after everything in it was unpacked: that it exists says that it is whole.
    if target.exists():
        run.say(f"{target}: is there")
        return
    _download(archive, root)
    run.say(f"unpacking {archive.filename}")
    _unpack(archive, root, target)
    run.say(f"{target}: unpacked; {root / archive.filename} is no longer needed")


def _download(archive: Archive, root: Path) -> None:
    path = root / archive.filename
    by_hand = f"put {archive.filename} (MD5 {archive.md5}) from {archive.url} into {root} by hand and run this again"
    if check_integrity(path, archive.md5):
        run.say(f"{path}: is there, its MD5 is right")
        return
    try:
        with _impatient():
            download_url(archive.url, root, archive.filename, archive.md5)
    except (OSError, http.client.HTTPException, RuntimeError) as error:
        # torchvision raises RuntimeError where the sum is wrong, and leaves the file, which may have been there before.
        found = f"; the file there has MD5 {calculate_md5(path)}" if path.is_file() else ""
        raise Problem(f"{archive.url} could not be downloaded ({error}){found}; {by_hand}") from error


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _unpack(archive: Archive, root: Path, target: Path) -> None:
    unpacking = root / f".{archive.filename}.partial"
    shutil.rmtree(unpacking, ignore_errors=True)
    try:
        with tarfile.open(root / archive.filename) as tar:
            _extract(tar, unpacking)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(unpacking / archive.inside, target)
    except tarfile.TarError as error:
        raise Problem(f"{root / archive.filename}: not unpacked, {error}; delete it and run this again") from error
    except FileNotFoundError as error:
        raise Problem(
            f"{root / archive.filename}: holds no folder {archive.inside}; delete it and run again"
        ) from error
    finally:
        shutil.rmtree(unpacking, ignore_errors=True)


def _extract(tar: tarfile.TarFile, folder: Path) -> None:
    """Files and folders only, and nothing outside `folder`: the filters that see to it came with Python 3.11.4."""
    root = folder.resolve()
    for member in tar:
        if not (member.isfile() or member.isdir()):
            raise tarfile.TarError(f"{member.name} is neither a file nor a folder")
        if not (root / member.name).resolve().is_relative_to(root):
            raise tarfile.TarError(f"{member.name} is outside the destination")
        tar.extract(member, folder, set_attrs=False)


def _write_trainaug(voc: Path, sbd: Path) -> int:
    lists = voc / "ImageSets" / "Segmentation"
    ids = _ids(lists / "train.txt") | _ids(sbd / "train.txt") | _ids(sbd / "val.txt")
    ids -= _ids(lists / "val.txt")
    write_atomically(lists / "trainaug.txt", "".join(f"{image_id}\n" for image_id in sorted(ids)).encode())
    return len(ids)


def _ids(path: Path) -> set[str]:
    try:
        return set(path.read_text().split())
    except FileNotFoundError:
        raise Problem(f"{path}: this list is missing; delete its data set's folder and run this again") from None


if __name__ == "__main__":
    run.start(main)
