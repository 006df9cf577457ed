"""Download PASCAL VOC 2012 and the Semantic Boundaries Dataset (SBD), check them, unpack them: `make voc`.

Addresses and MD5 sums are those of torchvision's `VOCSegmentation` and `SBDataset`. What was downloaded or unpacked
before is not fetched again, and an aborted download goes on where it ended. Adds
`ImageSets/Segmentation/trainaug.txt`: VOC's train and all of SBD without VOC's val (10,582 images), the training set
of every paper since. No stage of the pipeline: nothing of it is under DVC.
"""

import http.client
import os
import shutil
import tarfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from torchvision.datasets import SBDataset
from torchvision.datasets.utils import USER_AGENT, calculate_md5, check_integrity
from torchvision.datasets.voc import DATASET_YEAR_DICT

from segcore.cli import command, console
from segcore.data.manifest import read_ids
from segcore.errors import Problem
from segcore.files import fresh_folder, write_atomically

SILENCE = 60.0
"""Seconds without a byte after which a download counts as failed."""

CHUNK = 1 << 15
"""Bytes between two writes: at most what a silent line costs."""


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
    console.say(f"trainaug.txt lists {n_images} images; to use them, set in params.yaml:")
    console.say(
        f"  dataset: layout: voc, root: {root / VOC.target}, sbd_root: {root / SBD.target}, train_list: trainaug"
    )


def _provide(archive: Archive, root: Path) -> None:
    target = root / archive.target
    # A folder appears there by one rename, after everything in it was unpacked: that it exists says that it is whole.
    if target.exists():
        console.say(f"{target}: is there")
        return
    _download(archive, root)
    console.say(f"unpacking {archive.filename}")
    _unpack(archive, root, target)
    console.say(f"{target}: unpacked; {root / archive.filename} is no longer needed")


def _download(archive: Archive, root: Path) -> None:
    path, partial = root / archive.filename, root / f".{archive.filename}.partial"
    by_hand = f"put {archive.filename} (MD5 {archive.md5}) from {archive.url} into {root} by hand and run this again"
    if check_integrity(path, archive.md5):
        console.say(f"{path}: is there, its MD5 is right")
        if partial.is_file():
            partial.unlink()
        return
    if partial.is_symlink():
        partial.unlink()  # it would be followed to the file that it names
    try:
        _fetch(archive.url, partial)
    except (OSError, http.client.HTTPException) as error:
        found = f"; the file there has MD5 {calculate_md5(path)}" if path.is_file() else ""
        n_bytes = _size(partial)
        go_on = f"run this again to go on after the {n_bytes:,} bytes that are there, or " if n_bytes else ""
        raise Problem(f"{archive.url} could not be downloaded ({error}){found}; {go_on}{by_hand}") from error
    md5 = calculate_md5(partial)
    if md5 != archive.md5:
        # No telling which of its bytes are wrong: to go on from them would fail for ever.
        partial.unlink()
        raise Problem(
            f"{archive.url}: what arrived has MD5 {md5} and was deleted; run this again to start anew, or {by_hand}"
        )
    os.replace(partial, path)


def _fetch(url: str, partial: Path) -> None:
    """Ask for what `partial` lacks and append it. Only a sum can tell whether the file is then the right one.

    torchvision's own `download_url` starts from zero each time.

    Raises:
        OSError, http.client.HTTPException: the rest did not come; what did come is kept.
    """
    begin = _size(partial)
    headers = {"User-Agent": USER_AGENT} | ({"Range": f"bytes={begin}-"} if begin else {})
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=SILENCE)
    except urllib.error.HTTPError as error:
        if begin and error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # nothing comes after these bytes: the file is whole, or not the one
        raise
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
        console=console.console,
    )  # fmt: skip
    with response:
        if response.status != HTTPStatus.PARTIAL_CONTENT:
            begin = 0  # a server without ranges sends all of it
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {begin}-"):
            raise http.client.HTTPException("the server sent another part than the one asked for")
        total = None if response.length is None else begin + response.length
        with partial.open("ab" if begin else "wb") as file, bar:
            task = bar.add_task(url.rsplit("/", 1)[-1], total=total, completed=begin)
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.advance(task, len(chunk))
    # A connection that is closed too early looks like the end of the file.
    if total is not None and _size(partial) < total:
        raise ConnectionError(f"the connection ended {total - _size(partial):,} bytes too early")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _unpack(archive: Archive, root: Path, target: Path) -> None:
    unpacking = root / f".{target.name}.partial"
    fresh_folder(unpacking)
    try:
        with tarfile.open(root / archive.filename) as tar:
            _extract(tar, unpacking)
        _usual_modes(unpacking)
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


def _usual_modes(folder: Path) -> None:
    """As whatever this user makes: tarfile leaves folders that nobody else may open."""
    umask = os.umask(0)
    os.umask(umask)
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def _write_trainaug(voc: Path, sbd: Path) -> int:
    lists = voc / "ImageSets" / "Segmentation"
    ids = _ids(lists / "train.txt") | _ids(sbd / "train.txt") | _ids(sbd / "val.txt")
    ids -= _ids(lists / "val.txt")
    write_atomically(lists / "trainaug.txt", "".join(f"{image_id}\n" for image_id in sorted(ids)).encode())
    return len(ids)


def _ids(path: Path) -> set[str]:
    try:
        return set(read_ids(path))
    except FileNotFoundError:
        raise Problem(f"{path}: this list is missing; delete its data set's folder and run this again") from None


if __name__ == "__main__":
    command.start(main)
