"""Shards behind a web server and in an object store, which are slow, fail, and cut connections."""

import contextlib
import importlib.util
import os
import shutil
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from segcore.cli import shard_cache
from segcore.data import kept_shards, remote
from segcore.data.addresses import Member
from segcore.data.manifest import read_manifest
from segcore.data.pictures import read_image
from segcore.data.samples import TaggedImages
from segcore.errors import Problem
from segcore.exchange import packs
from stages import prepare
from tests.stores import Store, in_front_of, served
from tests.test_webdataset import batches, packed, shards_section
from tests.tiny import STAGES, files, run_stages, tiny_dataset, tiny_params

TRAIN = "train-00000.tar"


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Short pauses, and no cache that another test asked for."""
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    yield
    kept_shards.use(None)
    kept_shards._without_room.clear()


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny data set: a folder `voc`, its shards in `there`, their index in `index`."""
    folder = tmp_path_factory.mktemp("given")
    tiny_dataset(folder)
    with contextlib.chdir(folder):
        packed(Path("voc"), Path("there"))
    (folder / "index").mkdir()
    for name in ("shards.json", "index.parquet"):
        (folder / "there" / name).rename(folder / "index" / name)
    return folder


@pytest.fixture
def store(given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A copy of it to work in, the shards behind a web server."""
    shutil.copytree(given, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    with served(tmp_path / "there") as server:
        yield server


def prepared(store: Store | str) -> Path:
    address = store if isinstance(store, str) else store.address
    params = tiny_params(Path("of_shards.yaml"), dataset=shards_section("index", shards=address))
    prepare.main(out=Path("prepared"), params=params)
    return Path("prepared/manifest.parquet")


def first_faults(count: int, fault: str) -> Any:
    """Every request's range fails so many times before it is answered."""
    seen: dict[tuple[str, str], int] = {}

    def of(store: Store) -> Any:
        def decide(number: int, path: str) -> str | None:
            asked = store.requests[number]
            seen[asked] = seen.get(asked, 0) + 1
            return fault if seen[asked] <= count else None

        return decide

    return of


def assert_given_up(store: Store, record: Any, patience: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of a server that does not answer is a clear problem soon."""
    monkeypatch.setattr(remote, "PATIENCE", patience)
    store.fault = lambda number, path: "hang"
    begin = time.monotonic()
    with pytest.raises(Problem, match="could not be read in 6 tries"):
        read_image(record.image)
    assert time.monotonic() - begin < 5


class TestHTTP:
    def test_every_stage_gives_what_the_folder_gives(self, store: Store) -> None:
        short = [stage for stage in STAGES if stage in ("prepare", "split", "train_classifier")]
        run_stages(*short)
        expected = {name: files(Path(name)) for name in ("split", "classifier/model")}
        for name in ("data", "split", "masks", "classifier", ".scratch"):
            Path(name).rename(f"former_{name}")
        params = tiny_params(Path("of_shards.yaml"), dataset=shards_section("index", shards=store.address))
        run_stages(*short, params=params)
        found = {name: files(Path(name)) for name in expected}
        assert found["classifier/model"] == expected["classifier/model"]
        assert found["split"] == expected["split"]

    @pytest.mark.parametrize("fault", ["500", "cut", "short", "wrong", "hang"])
    def test_what_fails_for_a_while_changes_nothing(
        self, store: Store, fault: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        records = read_manifest(prepared(store))
        expected = batches(TaggedImages(records.of_split("train"), 3, 72, 64))
        if fault == "hang":
            monkeypatch.setattr(remote, "PATIENCE", 0.2)
        else:
            store.requests.clear()
        some = records.of_split("train")[:2] if fault == "hang" else records.of_split("train")
        expected = batches(TaggedImages(some, 3, 72, 64)) if fault == "hang" else expected
        store.requests.clear()
        store.fault = first_faults(1 if fault == "hang" else 3, fault)(store)
        assert batches(TaggedImages(some, 3, 72, 64)) == expected
        assert len(store.requests) > len({*store.requests})

    @pytest.mark.parametrize("fault", ["500", "cut", "short", "wrong", "whole"])
    def test_what_fails_for_good_is_one_clear_problem(self, store: Store, fault: str) -> None:
        record = read_manifest(prepared(store))["train_000"]
        store.requests.clear()
        store.fault = lambda number, path: fault
        with pytest.raises(Problem, match=rf"{store.address}/{TRAIN}: could not be read in {remote.TRIES} tries"):
            read_image(record.image)
        assert len(store.requests) == remote.TRIES

    def test_a_server_that_hangs_is_given_up(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        assert_given_up(store, read_manifest(prepared(store))["train_000"], 0.1, monkeypatch)

    def test_a_failure_in_prepare_leaves_what_was_there(self, store: Store) -> None:
        prepared(store)
        before = files(Path("prepared"))
        store.fault = lambda number, path: "500" if number > 25 else None
        with pytest.raises(Problem, match="could not be read in 6 tries"):
            prepared(store)
        assert files(Path("prepared")) == before
        assert not Path(".prepared.partial").exists()

    def test_a_shard_that_is_not_there(self, store: Store) -> None:
        record = read_manifest(prepared(store))["train_000"]
        (store.root / TRAIN).unlink()
        store.requests.clear()
        with pytest.raises(Problem, match=f"{TRAIN}: is not there"):
            read_image(record.image)
        assert len(store.requests) == 1, "another try would not mend it"
        with pytest.raises(Problem, match=f"{TRAIN}: this shard is missing"):
            prepared(store)

    def test_what_is_forbidden_is_told_at_once(self, store: Store) -> None:
        record = read_manifest(prepared(store))["train_000"]
        store.requests.clear()
        store.fault = lambda number, path: "403"
        with pytest.raises(Problem, match=f"{TRAIN}: may not be read .*; check the credentials"):
            read_image(record.image)
        assert len(store.requests) == 1

    def test_another_shard_of_the_same_size_is_noticed(self, store: Store) -> None:
        record = read_manifest(prepared(store))["train_000"]
        content = (store.root / TRAIN).read_bytes()
        (store.root / TRAIN).write_bytes(content[:600] + b"\1" + content[601:])
        with pytest.raises(Problem, match="other bytes came than those that were listed"):
            read_image(record.image)

    def test_tars_of_a_server_are_indexed_as_those_of_a_folder(self, store: Store, tmp_path: Path) -> None:
        classes = Path("voc/classes.txt").read_text().split()
        store.fault = first_faults(2, "cut")(store)
        names = sorted(path.name for path in store.root.glob("*.tar"))
        packs.index([f"{store.address}/{name}" for name in names], classes, Path("again"))
        assert files(Path("again")) == files(Path("index"))

    def test_an_index_that_fails_is_not_written(self, store: Store) -> None:
        store.fault = lambda number, path: "500"
        with pytest.raises(Problem, match="could not be read in 6 tries"):
            packs.index([f"{store.address}/{TRAIN}"], ["background", "cat"], Path("again"))
        assert not Path("again").exists()

    @pytest.mark.parametrize(
        ("address", "said"),
        [
            ("nonsense://x", "nonsense://x/train-00000.tar: is no address that can be read"),
            ("http://127.0.0.1:9", "could not be read in 6 tries"),
        ],
    )
    def test_addresses_that_lead_nowhere(self, store: Store, address: str, said: str) -> None:
        with pytest.raises(Problem, match=said):
            prepared(address)


class TestCache:
    @pytest.fixture
    def records(self, store: Store) -> Any:
        found = read_manifest(prepared(store))
        store.requests.clear()
        return found

    def test_a_shard_is_fetched_once_and_results_are_the_same(self, store: Store, records: Any) -> None:
        samples = TaggedImages(records.of_split("train"), 3, 72, 64)
        expected = batches(samples)
        store.requests.clear()
        kept_shards.use(kept_shards.Cache(Path("cache"), 1e9))
        assert batches(samples) == batches(samples) == expected
        assert all(asked.startswith("bytes=0-") for _, asked in store.requests)
        assert len(store.requests) == len({path for path, _ in store.requests})
        assert {path.suffix for path in Path("cache").iterdir()} == {".tar", ""}

    def test_it_takes_no_more_than_it_may(self, store: Store, records: Any) -> None:
        samples = TaggedImages(records.of_split("train"), 3, 72, 64)
        expected, most = batches(samples), 35_000.0
        kept_shards.use(kept_shards.Cache(Path("cache"), most))
        for _ in range(2):
            assert batches(samples) == expected
            assert 0 < sum(path.stat().st_size for path in Path("cache").glob("*.tar")) <= most
        fetched = [path for path, asked in store.requests if asked.startswith("bytes=0-")]
        assert len(fetched) == len({*fetched}), "no shard is turned out and fetched again in a run"

    def test_shards_of_former_runs_make_room(self, store: Store, records: Any) -> None:
        Path("cache").mkdir()
        for number in range(3):
            (Path("cache") / f"{number}.tar").write_bytes(bytes(15_000))
            os.utime(Path("cache") / f"{number}.tar", (number + 1, number + 1))
        (Path("cache") / ".half.tar.partial").write_bytes(b"x")
        kept_shards.use(kept_shards.Cache(Path("cache"), 60_000.0))
        read_image(records["train_000"].image)
        left = {path.name for path in Path("cache").glob("*.tar")}
        assert "0.tar" not in left
        assert "2.tar" in left, "the longest unused goes first"
        assert not list(Path("cache").glob(".*.partial"))

    def test_damage_in_it_is_noticed_and_mended(self, store: Store, records: Any) -> None:
        expected = read_image(records["train_000"].image)
        kept_shards.use(kept_shards.Cache(Path("cache"), 1e9))
        read_image(records["train_000"].image)
        for path in Path("cache").glob("*.tar"):
            path.write_bytes(bytes(path.stat().st_size))
        assert (read_image(records["train_000"].image) == expected).all()
        assert not list(Path("cache").glob("*.tar"))

    def test_a_fetch_that_fails_leaves_nothing_behind(self, store: Store, records: Any) -> None:
        kept_shards.use(kept_shards.Cache(Path("cache"), 1e9))
        store.fault = lambda number, path: "cut"
        with pytest.raises(Problem, match="could not be read in 6 tries"):
            read_image(records["train_000"].image)
        assert [path.name for path in Path("cache").iterdir()] == [".lock"]

    def test_workers_keep_shards_too(self, store: Store, records: Any) -> None:
        samples = TaggedImages(records.of_split("train"), 3, 72, 64)
        expected = batches(samples)
        store.requests.clear()
        kept_shards.use(kept_shards.Cache(Path("cache").absolute(), 1e9))
        assert batches(samples, workers=1) == expected
        assert list(Path("cache").glob("*.tar"))

    @pytest.mark.parametrize("bound", ["much", "-1", "nan"])
    def test_a_bound_that_is_none(self, bound: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(shard_cache.GIGABYTES, bound)
        with pytest.raises(Problem, match=f"{shard_cache.GIGABYTES}: found '{bound}'"):
            shard_cache.begin()

    def test_it_is_what_the_environment_says(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(shard_cache.FOLDER, str(tmp_path))
        monkeypatch.setenv(shard_cache.GIGABYTES, "1.5")
        shard_cache.begin()
        assert kept_shards.in_use() == kept_shards.Cache(tmp_path, 1.5e9)
        monkeypatch.delenv(shard_cache.FOLDER)
        shard_cache.begin()
        assert kept_shards.in_use() is None


needs_s3 = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("s3fs", "moto", "flask")),
    reason="no S3 server to test with; pip install 's3fs' 'moto[server]'",
)


@needs_s3
class TestS3:
    """Against moto, a server that speaks S3."""

    @pytest.fixture
    def between(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
        """The server, behind one that spoils its answers; the bucket `pictures` has the shards."""
        boto3, s3fs, moto = (import_module(name) for name in ("boto3", "s3fs", "moto.server"))
        server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        for key, value in {
            "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1",
        }.items():  # fmt: skip
            monkeypatch.setenv(key, value)
        client: Any = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
        client.create_bucket(Bucket="pictures")
        for path in store.root.glob("*.tar"):
            client.upload_file(str(path), "pictures", f"tiny/{path.name}")
        with in_front_of(f"http://{host}:{port}", store.root) as proxy:
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
            s3fs.S3FileSystem.clear_instance_cache()
            remote._resolved.cache_clear()
            yield proxy
        server.stop()

    @pytest.fixture
    def bucket(self, between: Store) -> str:
        return "s3://pictures/tiny"

    def test_batches_and_index_are_those_of_the_folder(self, bucket: str, store: Store) -> None:
        run_stages("prepare", params=Path("params.yaml"))
        expected = batches(TaggedImages(read_manifest(Path("data/manifest.parquet")).of_split("train"), 3, 72, 64))
        records = read_manifest(prepared(bucket))
        assert isinstance(first := records["train_000"].image, Member)
        assert first.shard == f"{bucket}/{TRAIN}"
        assert batches(TaggedImages(records.of_split("train"), 3, 72, 64)) == expected
        kept_shards.use(kept_shards.Cache(Path("cache"), 1e9))
        assert batches(TaggedImages(records.of_split("train"), 3, 72, 64)) == expected
        packs.index(remote.listing(bucket), Path("voc/classes.txt").read_text().split(), Path("again"))
        assert files(Path("again")) == files(Path("index"))

    def test_what_is_not_there_or_forbidden(self, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
        record = read_manifest(prepared(bucket))["train_000"]
        with pytest.raises(Problem, match="this shard is missing"):
            prepared("s3://pictures/elsewhere")
        with pytest.raises(Problem, match="there is no such folder"):
            remote.listing("s3://nobodys/tiny")
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        remote._resolved.cache_clear()
        import_module("s3fs").S3FileSystem.clear_instance_cache()
        with pytest.raises(Problem, match="could not be read in 6 tries"):
            read_image(record.image)

    @pytest.mark.parametrize("fault", ["500", "cut", "short", "wrong"])
    def test_what_fails_for_a_while_changes_nothing(self, bucket: str, between: Store, fault: str) -> None:
        if fault != "wrong":  # which nobody can tell before there are sums of the pictures
            between.fault = first_faults(2, fault)(between)
        records = read_manifest(prepared(bucket)).of_split("train")
        between.fault = lambda number, path: None
        expected = batches(TaggedImages(records, 3, 72, 64))
        for cache in (None, kept_shards.Cache(Path("cache"), 1e9)):
            kept_shards.use(cache)
            between.requests.clear()
            between.fault = first_faults(2, fault)(between)
            assert batches(TaggedImages(records, 3, 72, 64)) == expected
            assert len(between.requests) > len({*between.requests}), "nothing went wrong"

    @pytest.mark.parametrize("fault", ["500", "cut", "short", "wrong"])
    def test_what_fails_for_good_is_one_clear_problem(self, bucket: str, between: Store, fault: str) -> None:
        record = read_manifest(prepared(bucket))["train_000"]
        before = files(Path("prepared"))
        between.fault = lambda number, path: fault
        between.requests.clear()
        said = rf"{bucket}/{TRAIN}: could not be read in {remote.TRIES} tries"
        with pytest.raises(Problem, match=said):
            read_image(record.image)
        assert len(between.requests) == remote.TRIES
        kept_shards.use(kept_shards.Cache(Path("cache"), 1e9))
        with pytest.raises(Problem, match=said):
            read_image(record.image)
        assert not [path for path in Path("cache").rglob("*.tar*") if path.is_file()]
        with pytest.raises(Problem, match="nothing but zeros" if fault == "wrong" else said):
            prepared(bucket)
        assert files(Path("prepared")) == before

    def test_a_server_that_hangs_is_given_up(
        self, bucket: str, between: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert_given_up(between, read_manifest(prepared(bucket))["train_000"], 0.2, monkeypatch)

    def test_what_is_forbidden_midway_is_told_at_once(self, bucket: str, between: Store) -> None:
        record = read_manifest(prepared(bucket))["train_000"]
        between.requests.clear()
        between.fault = lambda number, path: "403"
        with pytest.raises(Problem, match=f"{TRAIN}: may not be read .*; check the credentials"):
            read_image(record.image)
        assert len(between.requests) == 1
