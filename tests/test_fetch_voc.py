"""Archives are believed only by their MD5, unpacked only inside, and no byte is fetched twice.

No test leaves this machine: the server is a thread.
"""

import hashlib
import io
import os
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from segcore.commands import fetch_voc
from segcore.commands.fetch_voc import Archive
from segcore.errors import Problem

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


class Network(ThreadingHTTPServer):
    """Serves the files of a folder, and remembers what it was asked for: names and ranges."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.folder = folder
        self.asked: list[tuple[str, str | None]] = []
        self.knows_ranges = True
        self.breaks_after: int | None = None
        self.stalls = False
        self.sends_other_part = False
        self.is_over = threading.Event()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def stop(self) -> None:
        """From now on a connection is refused."""
        self.is_over.set()
        self.shutdown()
        self.server_close()


class Answer(BaseHTTPRequestHandler):
    server: Network  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        network, (folder, _, name) = self.server, self.path.rpartition("/")
        wanted = self.headers["Range"]
        if folder:
            self.send_response(302)
            self.send_header("Location", f"/{name}")
            self.end_headers()
            return
        network.asked.append((name, wanted))
        content = (network.folder / name).read_bytes()
        begin = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and network.knows_ranges else 0
        if begin >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if begin else 200)
        if begin:
            first = begin - network.sends_other_part
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        self.wfile.write(content[begin:][: network.breaks_after])
        if network.stalls:
            network.is_over.wait(30)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    monkeypatch.setenv("no_proxy", "*")
    folder = tmp_path / "server"
    folder.mkdir()
    network = Network(folder)
    offer(network, monkeypatch, "VOC", make_tar(folder / "voc.tar", VOC_FILES))
    offer(network, monkeypatch, "SBD", make_tar(folder / "sbd.tgz", SBD_FILES))
    yield network
    network.stop()


def offer(network: Network, monkeypatch: pytest.MonkeyPatch, name: str, md5: str, folder: str = "") -> None:
    """Let the archive `name` be the one on the server."""
    archive: Archive = getattr(fetch_voc, name)
    filename = {"VOC": "voc.tar", "SBD": "sbd.tgz"}[name]
    url = f"{network.url}{folder}/{filename}"
    monkeypatch.setattr(fetch_voc, name, Archive(url, filename, md5, archive.inside, archive.target))


def abort(network: Network, root: Path, n_bytes: int) -> None:
    """A first download that ends after `n_bytes`."""
    network.breaks_after = n_bytes
    with pytest.raises(Problem, match="could not be downloaded"):
        fetch_voc.main(root=root)
    network.breaks_after = None
    assert (root / ".voc.tar.partial").stat().st_size == n_bytes
    assert not (root / "voc.tar").exists()
    network.asked.clear()


def lists_at(root: Path) -> Path:
    return root / VOC_LISTS


def test_both_sets_arrive_and_val_stays_out_of_trainaug(network: Network, tmp_path: Path) -> None:
    root = tmp_path / "data"
    fetch_voc.main(root=root)
    assert (lists_at(root) / "trainaug.txt").read_text() == "a\nb\nd\ne\n"
    assert (root / "SBD/cls/d.mat").is_file()
    assert network.asked == [("voc.tar", None), ("sbd.tgz", None)]
    assert {path.name for path in root.iterdir()} == {"VOCdevkit", "SBD", "voc.tar", "sbd.tgz"}


def test_what_is_there_is_not_fetched_again(network: Network, tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    (root / "voc.tar").write_bytes((network.folder / "voc.tar").read_bytes())
    (root / ".voc.tar.partial").write_text("aborted before the whole file was put there by hand")
    fetch_voc.main(root=root)
    assert network.asked == [("sbd.tgz", None)]
    assert not (root / ".voc.tar.partial").exists()
    network.asked.clear()
    for name in ("voc.tar", "sbd.tgz"):
        (root / name).unlink()
    fetch_voc.main(root=root)
    assert not network.asked
    assert (lists_at(root) / "trainaug.txt").is_file()


def test_an_interrupted_unpacking_is_done_again(network: Network, tmp_path: Path) -> None:
    root = tmp_path / "data"
    (root / ".VOC2012.partial/VOCdevkit").mkdir(parents=True)
    (root / ".VOC2012.partial/VOCdevkit/half").write_text("")
    fetch_voc.main(root=root)
    assert not (root / ".VOC2012.partial").exists()
    assert (lists_at(root) / "train.txt").is_file()


def test_an_aborted_download_asks_only_for_the_rest(network: Network, tmp_path: Path) -> None:
    root = tmp_path / "data"
    abort(network, root, 4000)
    fetch_voc.main(root=root)
    assert network.asked == [("voc.tar", "bytes=4000-"), ("sbd.tgz", None)]
    assert (root / "voc.tar").read_bytes() == (network.folder / "voc.tar").read_bytes()
    assert not list(root.glob(".*"))


def test_a_redirect_is_asked_for_the_rest_too(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(network, monkeypatch, "VOC", fetch_voc.VOC.md5, "/elsewhere")
    abort(network, tmp_path, 4000)
    fetch_voc.main(root=tmp_path)
    assert network.asked[0] == ("voc.tar", "bytes=4000-")


def test_it_goes_on_as_often_as_it_is_aborted(network: Network, tmp_path: Path) -> None:
    abort(network, tmp_path, 1000)
    network.breaks_after = 2000
    with pytest.raises(Problem, match="go on after the 3,000 bytes"):
        fetch_voc.main(root=tmp_path)
    network.breaks_after = None
    fetch_voc.main(root=tmp_path)
    assert [wanted for _, wanted in network.asked] == ["bytes=1000-", "bytes=3000-", None]


def test_a_server_without_ranges_sends_all_of_it(network: Network, tmp_path: Path) -> None:
    network.knows_ranges = False
    abort(network, tmp_path, 4000)
    fetch_voc.main(root=tmp_path)
    assert (tmp_path / "voc.tar").read_bytes() == (network.folder / "voc.tar").read_bytes()


def test_a_whole_partial_file_needs_only_its_sum(network: Network, tmp_path: Path) -> None:
    content = (network.folder / "voc.tar").read_bytes()
    (tmp_path / ".voc.tar.partial").write_bytes(content)
    fetch_voc.main(root=tmp_path)
    assert network.asked[0] == ("voc.tar", f"bytes={len(content)}-")
    assert (tmp_path / "voc.tar").read_bytes() == content


@pytest.mark.parametrize("n_bytes", [4000, 100_000])
def test_a_partial_file_of_something_else_is_refused_once(network: Network, tmp_path: Path, n_bytes: int) -> None:
    """Shorter than the archive it is continued, longer it is not; its sum is wrong in both cases."""
    (tmp_path / ".voc.tar.partial").write_bytes(b"?" * n_bytes)
    with pytest.raises(Problem, match="what arrived has MD5 .* was deleted; run this again to start anew"):
        fetch_voc.main(root=tmp_path)
    assert not list(tmp_path.glob("*voc*"))
    fetch_voc.main(root=tmp_path)
    assert (lists_at(tmp_path) / "train.txt").is_file()


def test_another_part_than_asked_for_is_not_appended(network: Network, tmp_path: Path) -> None:
    abort(network, tmp_path, 4000)
    network.sends_other_part = True
    with pytest.raises(Problem, match="another part than the one asked for"):
        fetch_voc.main(root=tmp_path)
    assert (tmp_path / ".voc.tar.partial").stat().st_size == 4000


def test_a_silent_server_is_given_up(network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_voc, "SILENCE", 0.2)
    network.breaks_after, network.stalls = 0, True
    with pytest.raises(Problem, match="timed out.*by hand"):
        fetch_voc.main(root=tmp_path)


def test_without_network_one_sentence_says_where_to_put_which_file(network: Network, tmp_path: Path) -> None:
    network.stop()
    with pytest.raises(Problem) as caught:
        fetch_voc.main(root=tmp_path / "data")
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "refused",
        "put voc.tar",
        fetch_voc.VOC.md5,
        f"{network.url}/voc.tar",
        str(tmp_path / "data"),
        "by hand",
    ):
        assert part in message


def test_a_wrong_sum_is_never_unpacked(network: Network, tmp_path: Path) -> None:
    wrong = make_tar(network.folder / "voc.tar", VOC_FILES | {"more": ""})
    with pytest.raises(Problem, match=f"has MD5 {wrong} and was deleted.*put voc.tar .MD5 {fetch_voc.VOC.md5}"):
        fetch_voc.main(root=tmp_path / "data")
    assert not list((tmp_path / "data").iterdir())


def test_a_wrong_file_put_there_by_hand_is_named_and_kept(network: Network, tmp_path: Path) -> None:
    (tmp_path / "voc.tar").write_text("?")
    network.stop()
    with pytest.raises(Problem, match=f"the file there has MD5 {hashlib.md5(b'?').hexdigest()}"):
        fetch_voc.main(root=tmp_path)
    assert (tmp_path / "voc.tar").read_text() == "?"


@pytest.mark.parametrize("name", ["../evil", "VOCdevkit/../../../evil"])
def test_a_member_outside_is_refused(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    md5 = make_tar(network.folder / "voc.tar", VOC_FILES | {name: "evil"})
    offer(network, monkeypatch, "VOC", md5)
    with pytest.raises(Problem, match="not unpacked.*outside the destination"):
        fetch_voc.main(root=tmp_path / "data")
    assert not list(tmp_path.rglob("evil"))
    assert not (tmp_path / "data/VOCdevkit").exists()


def test_an_archive_of_something_else(network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    md5 = make_tar(network.folder / "voc.tar", {"README": "?"})
    offer(network, monkeypatch, "VOC", md5)
    with pytest.raises(Problem, match="holds no folder VOCdevkit/VOC2012"):
        fetch_voc.main(root=tmp_path / "data")


def test_addresses_and_sums_are_those_of_torchvision() -> None:
    from torchvision.datasets import SBDataset

    assert fetch_voc.SBD.md5 == SBDataset.md5
    assert fetch_voc.VOC.filename == "VOCtrainval_11-May-2012.tar"
    assert len(fetch_voc.VOC.md5) == 32


def test_links_placed_in_advance_are_not_followed(network: Network, tmp_path: Path) -> None:
    elsewhere, file = tmp_path / "elsewhere", tmp_path / "file"
    elsewhere.mkdir()
    file.write_text("mine")
    data = tmp_path / "data"
    (data / "VOCdevkit").mkdir(parents=True)
    (data / ".VOC2012.partial").symlink_to(elsewhere)
    (data / ".voc.tar.partial").symlink_to(file)
    fetch_voc.main(root=data)
    assert not list(elsewhere.iterdir())
    assert file.read_text() == "mine"
    assert (data / "VOCdevkit/VOC2012").is_dir()


def test_what_is_unpacked_has_the_usual_modes(network: Network, tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        fetch_voc.main(root=tmp_path / "data")
    finally:
        os.umask(umask)
    modes = {path.is_dir(): path.stat().st_mode & 0o777 for path in (tmp_path / "data/VOCdevkit/VOC2012").rglob("*")}
    assert modes == {True: 0o755, False: 0o644}
