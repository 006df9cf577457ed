"""Every prediction in the page: what it holds, how much room it takes, and what a real browser makes of it."""

import base64
import io
import json
import re
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segcore.config.settings import load
from segcore.data.manifest import read_manifest, write_manifest
from segcore.data.pictures import read_labels
from segcore.errors import Problem
from segcore.evaluation import per_image
from segcore.evaluation.predictions import FILE, Predictions
from segcore.reporting import gallery as galleries
from segcore.reporting import page
from segcore.reporting.results import Results
from tests import invented
from tests.browser import seen
from tests.devkit import PARAMS
from tests.invented import NAMES, SYSTEMS

IMAGES = 12
SOME = SYSTEMS[:3]
ODD = "</script><b>x"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return invented.invented_results(tmp_path_factory.mktemp("results"), images=IMAGES, panels=1)


@pytest.fixture
def data(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "data/shapes"))


def folders(data: Path) -> dict[str, Path]:
    return {system: data / "results" / system for system in SOME}


def shown(data: Path, most_bytes: int = galleries.MOST_BYTES) -> galleries.Gallery:
    found = galleries.gallery(data, folders(data), NAMES, most_bytes)
    assert found is not None
    return found


def decoded(url: str) -> bytes:
    return base64.b64decode(url.partition(",")[2])


def maps(picture: dict[str, Any]) -> np.ndarray:
    """Mask and predictions of a picture, as the page unpacks them."""
    width, height = picture["size"]
    return np.frombuffer(zlib.decompress(decoded(picture["labels"])), np.uint8).reshape(-1, height, width)


def test_every_image_is_there_with_its_mask_and_all_predictions(data: Path) -> None:
    found = shown(data)
    records = read_manifest(data / "prepared/manifest.parquet")
    assert {picture["id"] for picture in found.pictures} == {*records}
    assert (found.n_scored, found.n_absent, found.systems, found.without) == (IMAGES, 0, SOME, [])
    kept = {system: Predictions(folder) for system, folder in folders(data).items()}
    for picture in found.pictures:
        record = records[picture["id"]]
        assert picture["size"] == [record.width, record.height], "small pictures are not enlarged"
        assert record.labels is not None
        expected = [read_labels(record.labels), *(one.labels(record.image_id) for one in kept.values())]
        np.testing.assert_array_equal(maps(picture), np.stack(expected))
        with Image.open(io.BytesIO(decoded(picture["photo"]))) as photo:
            assert list(photo.size) == picture["size"]


def test_scores_are_those_of_the_image(data: Path) -> None:
    found = shown(data)
    for number, folder in enumerate(folders(data).values()):
        counts = per_image.read(folder, NAMES)
        by_id = dict(zip(counts.ids, counts.counts, strict=True))
        for picture in found.pictures:
            hits, truth, predicted = by_id[picture["id"]]
            assert picture["mean"][number] == round(1000 * float(per_image.mean_iou(by_id[picture["id"]])))
            union = truth + predicted - hits
            expected = {k: round(1000 * hits[k] / union[k]) for k in range(len(NAMES)) if union[k]}
            assert picture["iou"][number] == expected
            assert picture["shown"] == [k for k in range(1, len(NAMES)) if truth[k]]
    means = [np.mean(picture["mean"]) for picture in found.pictures]
    assert means == sorted(means), "worst first"


def test_the_page_is_bounded_and_says_what_it_leaves_out(data: Path) -> None:
    whole = shown(data)
    bytes_of_all = sum(galleries._bytes(picture) for picture in whole.pictures)
    few = shown(data, most_bytes=bytes_of_all // 3)
    assert 2 <= len(few.pictures) < IMAGES
    assert sum(galleries._bytes(picture) for picture in few.pictures) <= bytes_of_all // 3
    assert few.n_scored == IMAGES
    assert few.pictures[0]["id"] == whole.pictures[0]["id"], "the worst"
    assert few.pictures[-1]["id"] == whole.pictures[-1]["id"], "the best"
    html = rendered(data, most_bytes=bytes_of_all // 3)
    assert "One file has no room for all" in html
    assert "One file has no room for all" not in rendered(data)


def test_more_images_have_smaller_thumbnails(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(galleries, "SIDES", (96, 48, 16))
    total = sum(galleries._bytes(picture) for picture in shown(data).pictures)
    found = shown(data, most_bytes=total)
    assert found.side == 48
    assert len(found.pictures) == IMAGES
    assert all(max(picture["size"]) == 48 for picture in found.pictures)
    assert {*np.unique(maps(found.pictures[0]))} <= {*range(len(NAMES)), 255}, "classes are never blended"


def test_what_is_not_there_is_left_out_and_told(data: Path) -> None:
    (data / f"results/{SOME[0]}" / FILE).unlink()
    records = list(read_manifest(data / "prepared/manifest.parquet").values())
    gone = records[0].image_id
    moved = [record if record.image_id != gone else replaced(record, Path("nowhere.jpg")) for record in records]
    write_manifest(data / "prepared/manifest.parquet", moved)
    found = shown(data)
    assert found.without == [SOME[0]]
    assert found.systems == SOME[1:]
    assert found.n_absent == 1
    assert gone not in {picture["id"] for picture in found.pictures}
    html = rendered(data)
    assert "Of 1 images the photo or the mask is not on this disk" in html
    assert f"No predictions are here of {SOME[0]};" in html
    (data / "prepared/manifest.parquet").unlink()
    assert galleries.gallery(data, folders(data), NAMES) is None


def replaced(record: Any, image: Path) -> Any:
    return type(record)(**{**record.__dict__, "image": image})


def test_a_damaged_prediction_is_named(data: Path) -> None:
    file = data / f"results/{SOME[1]}" / FILE
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(Problem, match=f"{SOME[1]}/predictions.zip is damaged"):
        shown(data)


def rendered(data: Path, most_bytes: int = galleries.MOST_BYTES) -> str:
    """The page of a few systems."""
    with pytest.MonkeyPatch.context() as patch:
        whole = galleries.gallery
        patch.setattr(page, "gallery", lambda folder, results, names: whole(folder, results, names, most_bytes))
        return page.rendered(Results(data, load(PARAMS)), "", page.Run("here", "abc", {}, {}))


def content(html: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="gallery-data">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_names_cannot_end_what_they_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [*NAMES[:-1], ODD]
    monkeypatch.setattr(invented, "NAMES", names)
    monkeypatch.setattr(invented, "SHAPES", names[1:])
    data = invented.invented_results(tmp_path, images=4, panels=1)
    html = rendered(data)
    assert ODD not in html
    assert content(html)["names"] == names
    (tmp_path / "index.html").write_text(html)
    script = "return [...document.querySelector('[name=class]').options].map((one) => one.textContent)"
    assert seen(tmp_path / "index.html", script, tmp_path)[1:] == names


@pytest.fixture(scope="module")
def html(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "index.html"
    file.write_text(rendered(made))
    return file


TILES = """
    const controls = document.getElementById("gallery-controls").elements;
    const set = (name, value) => { controls[name].value = value; controls[name].dispatchEvent(new Event("input")); };
    const tiles = () => [...document.querySelectorAll("#gallery-tiles .tile")];
    const ids = () => tiles().map((tile) => tile.querySelector(".caption span").textContent);
"""


def test_the_browser_sorts_and_chooses(html: Path, tmp_path: Path) -> None:
    pictures = content(html.read_text())["pictures"]
    asked = """
        const first = ids();
        set("order", "best");
        const best = ids();
        set("order", "worst"); set("class", "3"); set("system", "1");
        const of_class = ids();
        set("class", "-1"); set("other", "0"); set("order", "gain");
        const gain = ids();
        set("find", "00"); set("order", "id");
        const told = document.getElementById("gallery-count").textContent;
        return { first, best, of_class, gain, found: ids(), told };
    """
    found = seen(html, TILES + asked, tmp_path)
    by = {picture["id"]: picture for picture in pictures}
    assert found["first"] == sorted(by, key=lambda i: (by[i]["mean"][0], i))
    assert found["best"] == sorted(by, key=lambda i: (-by[i]["mean"][0], i))
    of_class = [i for i in by if 3 in by[i]["shown"] or "3" in by[i]["iou"][1]]
    assert 0 < len(of_class) < len(by)
    assert found["of_class"] == sorted(of_class, key=lambda i: (by[i]["iou"][1].get("3", 2000), i))
    assert found["gain"] == sorted(by, key=lambda i: (by[i]["mean"][0] - by[i]["mean"][1], i))
    assert found["found"] == sorted(i for i in by if "00" in i)
    assert found["told"] == f"{len(found['found'])} of {len(found['found'])} pictures"


@pytest.mark.parametrize("layer", ["photo", "truth", "prediction", "errors"])
def test_the_browser_paints_the_labels(layer: str, html: Path, tmp_path: Path) -> None:
    """Every pixel of one picture, at full opacity: colour by class, or by kind of error."""
    read = content(html.read_text())
    picture = min(read["pictures"], key=lambda one: (one["mean"][0], one["id"]))
    asked = f"""
        set("opacity", "100");
        const radio = [...controls.layer].find((one) => one.value === "{layer}");
        radio.checked = true;
        radio.dispatchEvent(new Event("change"));
        document.documentElement.style.scrollBehavior = "auto";
        tiles()[0].scrollIntoView();
        const canvas = tiles()[0].querySelector("canvas");
        const read = () => [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data];
        await waited(() => canvas.width === {picture["size"][0]} && canvas.height === {picture["size"][1]});
        await new Promise((done) => setTimeout(done, 300));
        return read();
    """
    width, height = picture["size"]
    got = np.array(seen(html, TILES + asked, tmp_path)).reshape(height, width, 4)
    truth, predicted = maps(picture)[:2]
    palette = np.array([tuple(bytes.fromhex(colour[1:])) for colour in read["colours"]])
    if layer == "photo":
        assert not got[..., 3].any()
    elif layer == "errors":
        wrong = (truth != predicted) & (truth != 255)
        errors = {name: tuple(bytes.fromhex(colour[1:])) for name, colour in read["errors"].items()}
        kinds = (
            ("missed", wrong & (predicted == 0)),
            ("invented", wrong & (truth == 0)),
            ("wrong class", wrong & (truth != 0) & (predicted != 0)),
        )
        assert wrong.any()
        for name, where in kinds:
            assert (got[where][:, :3] == errors[name]).all(), name
        assert (got[..., 3][~wrong] < 255).all()
    else:
        labels = truth if layer == "truth" else predicted
        objects = (labels > 0) & (labels < 255)
        np.testing.assert_array_equal(got[objects][:, :3], palette[labels[objects]])
        assert (got[objects][:, 3] == 255).all()
        assert (got[labels == 0][:, 3] < 128).all()


def test_a_picture_opens_zooms_and_closes_by_the_keyboard(html: Path, tmp_path: Path) -> None:
    asked = """
        const viewer = document.getElementById("viewer"), sheet = viewer.querySelector(".sheet");
        const press = (key, more = {}) => document.activeElement.dispatchEvent(
          new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true, ...more }));
        const title = () => viewer.querySelector("h3").textContent;
        tiles()[0].focus();
        tiles()[0].click();
        const opened = [viewer.open, title()];
        press("ArrowRight");
        const second = title();
        press("ArrowLeft"); press("ArrowLeft");
        const last = title();
        press("+"); press("+"); press("ArrowUp", { shiftKey: true });
        const zoomed = sheet.style.transform;
        press("0");
        const fitted = sheet.style.transform;
        press("4");
        const layer = viewer.querySelector("[name=viewer-layer]:checked").value;
        viewer.querySelectorAll(".strip .tile")[2].click();
        const of_third = title(), pressed = viewer.querySelectorAll(".strip [aria-pressed=true]").length;
        viewer.querySelector("[data-do=close]").click();
        await new Promise((done) => setTimeout(done, 100));
        return { opened, second, last, zoomed, fitted, layer, of_third, pressed, open: viewer.open,
                 focus: tiles().indexOf(document.activeElement) };
    """
    found = seen(html, TILES + asked, tmp_path)
    read = content(html.read_text())
    names = [system["name"] for system in read["systems"]]
    order = sorted(read["pictures"], key=lambda one: (one["mean"][0], one["id"]))

    def title(place: int, system: int) -> str:
        picture = order[place]
        score = f"{picture['mean'][system] / 10:.1f}"
        return f"{picture['id']} · {names[system]} {score} · {place + 1} of {IMAGES}"

    last = IMAGES - 1
    assert found["opened"] == [True, title(0, 0)]
    assert found["second"] == title(1, 0)
    assert found["last"] == title(last, 0)
    assert re.fullmatch(r"translate\(0px, [1-9][\d.]*px\) scale\(2.25\)", found["zoomed"])
    assert found["fitted"] == "translate(0px, 0px) scale(1)"
    assert found["layer"] == "errors"
    assert found["of_third"] == title(last, 2)
    assert found["pressed"] == 1
    assert (found["open"], found["focus"]) == (False, last)


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_is_wider_than_the_window(width: int, html: Path, tmp_path: Path) -> None:
    """But tables, which scroll by themselves and whose first column stays."""
    asked = """
        const wide = document.documentElement.scrollWidth - window.innerWidth;
        const scrolls = (one) => one.querySelector(".sticky") && one.scrollWidth > one.clientWidth;
        const box = [...document.querySelectorAll(".scroll")].find(scrolls);
        if (!box) return { wide, moved: 0 };
        const cell = box.querySelector("tbody tr:last-child > :first-child");
        const before = cell.getBoundingClientRect().left;
        box.scrollLeft = 60;
        return { wide, moved: cell.getBoundingClientRect().left - before, scrolled: box.scrollLeft };
    """
    found = seen(html, asked, tmp_path, width)
    assert found["wide"] <= 0
    assert found["moved"] == pytest.approx(0, abs=1)


def test_a_head_sorts_the_rows_of_each_group_and_a_line_comes_to_the_front(html: Path, tmp_path: Path) -> None:
    asked = """
        const table = document.querySelector("table.sortable");
        const values = () => [...table.tBodies].map((body) =>
          [...body.rows].filter((row) => !row.classList.contains("group")).map((row) => +row.cells[3].dataset.v));
        const head = table.tHead.rows[0].cells[3];
        head.querySelector("button").click();
        const down = values();
        head.querySelector("button").click();
        const up = values(), sort = head.getAttribute("aria-sort");
        const charting = document.querySelector(".charting"), button = charting.querySelector(".lines button");
        button.click();
        const count = (wanted) => charting.querySelectorAll(wanted).length;
        const faded = count(".series.faded"), all = count(".series");
        const mine = count(`.series[data-series="${button.dataset.series}"]`);
        button.click();
        return { down, up, sort, faded, all, mine, after: count(".faded") };
    """
    found = seen(html, asked, tmp_path)
    assert found["down"] == [sorted(group, reverse=True) for group in found["down"]]
    assert found["up"] == [sorted(group) for group in found["up"]]
    assert found["sort"] == "ascending"
    assert found["faded"] == found["all"] - found["mine"] > 0
    assert found["after"] == 0
