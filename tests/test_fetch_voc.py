"""Archives are believed only by their MD5, unpacked only inside, and never fetched twice; no test uses the network."""

import hashlib
import io
import tarfile
import urllib.error
from pathlib import Path

import pytest

from segcore.problems import Problem
from stages import fetch_voc
from stages.fetch_voc import Archive

VOC_LISTS = "VOCdevkit/VOC2012/ImageSets/Segmentation"
VOC_FILES = {
    f"{VOC_LISTS}/train.txt": "a\nb\n",
    f"{VOC_LISTS}/val.txt": "c\n",
    "VOCdevkit/VOC2012/JPEGImages/a.jpg": "-",
}
SBD_FILES = {
    "benchmark_RELEASE/dataset/train.txt": "b\nc\nd\n",
    "benchmark_RELEASE/dataset/val.txt": "e\n",
    "benchmark_RELEASE/dataset/cls/d.mat": "-",
}


def make_tar(path: Path, files: dict[str, str]) -> str:
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content.encode()))
    return hashlib.md5(path.read_bytes()).hexdigest()


class Network:
    """Stands for torchvision's `download_url`: copies from a folder, and counts."""

    def __init__(self, server: Path) -> None:
        self.server = server
        self.fetched: list[str] = []
        self.is_up = True

    def download_url(self, url: str, root: Path, filename: str, md5: str) -> None:
        if not self.is_up:
            raise urllib.error.URLError("no route to host")
        self.fetched.append(filename)
        content = (self.server / filename).read_bytes()
        (root / filename).write_bytes(content)
        if hashlib.md5(content).hexdigest() != md5:
            raise RuntimeError("File not found or corrupted.")


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Network:
    server = tmp_path / "server"
    server.mkdir()
    voc, sbd = make_tar(server / "voc.tar", VOC_FILES), make_tar(server / "sbd.tgz", SBD_FILES)
    monkeypatch.setattr(fetch_voc, "VOC", Archive("http://x/voc.tar", "voc.tar", voc, *targets(fetch_voc.VOC)))
    monkeypatch.setattr(fetch_voc, "SBD", Archive("http://x/sbd.tgz", "sbd.tgz", sbd, *targets(fetch_voc.SBD)))
    network = Network(server)
    monkeypatch.setattr(fetch_voc, "download_url", network.download_url)
    return network


def targets(archive: Archive) -> tuple[str, str]:
    return archive.inside, archive.target


def lists_at(root: Path) -> Path:
    return root / VOC_LISTS


def test_both_sets_arrive_and_val_stays_out_of_trainaug(network: Network, tmp_path: Path) -> None:
    root = tmp_path / "data"
    fetch_voc.main(root=root)
    assert (lists_at(root) / "trainaug.txt").read_text() == "a\nb\nd\ne\n"
    assert (root / "SBD/cls/d.mat").is_file()
    assert network.fetched == ["voc.tar", "sbd.tgz"]
    assert {path.name for path in root.iterdir()} == {"VOCdevkit", "SBD", "voc.tar", "sbd.tgz"}


def test_what_is_there_is_not_fetched_again(network: Network, tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    (root / "voc.tar").write_bytes((network.server / "voc.tar").read_bytes())
    fetch_voc.main(root=root)
    assert network.fetched == ["sbd.tgz"]
    network.is_up = False
    for name in ("voc.tar", "sbd.tgz"):
        (root / name).unlink()
    fetch_voc.main(root=root)
    assert (lists_at(root) / "trainaug.txt").is_file()


def test_an_interrupted_unpacking_is_done_again(network: Network, tmp_path: Path) -> None:
    root = tmp_path / "data"
    (root / ".voc.tar.partial/VOCdevkit").mkdir(parents=True)
    (root / ".voc.tar.partial/VOCdevkit/half").write_text("")
    fetch_voc.main(root=root)
    assert not (root / ".voc.tar.partial").exists()
    assert (lists_at(root) / "train.txt").is_file()


def test_without_network_one_sentence_says_where_to_put_which_file(network: Network, tmp_path: Path) -> None:
    network.is_up = False
    with pytest.raises(Problem) as caught:
        fetch_voc.main(root=tmp_path / "data")
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "no route to host",
        "put voc.tar",
        fetch_voc.VOC.md5,
        "http://x/voc.tar",
        str(tmp_path / "data"),
        "by hand",
    ):
        assert part in message


def test_a_wrong_sum_is_never_unpacked(network: Network, tmp_path: Path) -> None:
    wrong = make_tar(network.server / "voc.tar", VOC_FILES | {"more": ""})
    with pytest.raises(Problem, match=f"has MD5 {wrong}"):
        fetch_voc.main(root=tmp_path / "data")
    assert not (tmp_path / "data/VOCdevkit").exists()


@pytest.mark.parametrize("name", ["../evil", "VOCdevkit/../../../evil"])
def test_a_member_outside_is_refused(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    md5 = make_tar(network.server / "voc.tar", VOC_FILES | {name: "evil"})
    monkeypatch.setattr(fetch_voc, "VOC", Archive("http://x/voc.tar", "voc.tar", md5, *targets(fetch_voc.VOC)))
    with pytest.raises(Problem, match="not unpacked.*outside the destination"):
        fetch_voc.main(root=tmp_path / "data")
    assert not list(tmp_path.rglob("evil"))
    assert not (tmp_path / "data/VOCdevkit").exists()


def test_an_archive_of_something_else(network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    md5 = make_tar(network.server / "voc.tar", {"README": "?"})
    monkeypatch.setattr(fetch_voc, "VOC", Archive("http://x/voc.tar", "voc.tar", md5, *targets(fetch_voc.VOC)))
    with pytest.raises(Problem, match="holds no folder VOCdevkit/VOC2012"):
        fetch_voc.main(root=tmp_path / "data")


def test_addresses_and_sums_are_those_of_torchvision() -> None:
    from torchvision.datasets import SBDataset

    assert fetch_voc.SBD.md5 == SBDataset.md5
    assert fetch_voc.VOC.filename == "VOCtrainval_11-May-2012.tar"
    assert len(fetch_voc.VOC.md5) == 32
