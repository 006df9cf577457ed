"""The page in a real browser: a photo is opened, predicted, corrected and saved, and the next run learns from it.

It needs Chromium, Debian's package `chromium`, or the one that SEGCORE_CHROMIUM names.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segcore.data.manifest import read_manifest
from segcore.data.pictures import read_labels
from tests.devkit import draw
from tests.serving import PREPARED, SIZE, make_project, page_of, prepare, running

pytest.importorskip("playwright.sync_api", reason="playwright is not installed; it is in requirements.txt")

from playwright.sync_api import Browser, Page, expect, sync_playwright  # noqa: E402

CHROMIUM = os.environ.get("SEGCORE_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("no Chromium: apt-get install chromium, or name one by SEGCORE_CHROMIUM", allow_module_level=True)

QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync"]
PHOTO = (120, 90)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield started
        started.close()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("page"))


@pytest.fixture
def project(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project, in whose folder the test runs, and a photo beside it."""
    folder = tmp_path / "project"
    shutil.copytree(trained, folder)
    monkeypatch.chdir(folder)
    picture, _ = draw(PHOTO, [1, 2], np.random.default_rng(8))
    Image.fromarray(picture).save(tmp_path / "cup one.jpg", quality=95)
    return folder


@pytest.fixture
def page(browser: Browser, project: Path) -> Iterator[Page]:
    """The page as it is opened; a fault in its scripts, or a request that leads elsewhere, fails the test."""
    with running(page_of(project)) as address:
        context = browser.new_context(viewport={"width": 1280, "height": 800})
        shown = context.new_page()
        faults: list[str] = []
        shown.on("pageerror", lambda error: faults.append(str(error)))
        shown.on(
            "request", lambda one: None if one.url.startswith((address, "data:", "blob:")) else faults.append(one.url)
        )
        shown.goto(address)
        yield shown
        context.close()
    assert faults == []


def opened(page: Page, photo: Path) -> None:
    page.set_input_files("#file", photo)
    expect(page.locator("#status")).to_have_text(re.compile("Predicted in"), timeout=30_000)


def at(page: Page, x: float, y: float) -> tuple[float, float]:
    """Where on the screen a pixel of the photo is."""
    box = page.locator("#sheet").bounding_box()
    assert box is not None
    return box["x"] + x / PHOTO[0] * box["width"], box["y"] + y / PHOTO[1] * box["height"]


def stroke(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    page.mouse.move(*at(page, *start))
    page.mouse.down()
    page.mouse.move(*at(page, *end), steps=5)
    page.mouse.up()


def choose(page: Page, name: str) -> None:
    page.locator("#legend .class", has_text=re.compile(f"^{name}")).click()


def resize(page: Page, size: int) -> None:
    page.locator("#size").fill(str(size))


def saved(page: Page) -> None:
    page.get_by_role("button", name="Save as a strong mask").click()
    expect(page.locator("#note")).to_contain_text("Saved:")


def test_from_a_photo_to_a_mask_that_is_learned_from(page: Page, project: Path) -> None:
    photo = project.parent / "cup one.jpg"
    opened(page, photo)
    choose(page, "background")  # whatever was predicted
    resize(page, 30)
    page.get_by_role("radio", name="Brush").check()
    for y in range(0, PHOTO[1] + 10, 10):
        stroke(page, (0, y), (PHOTO[0], y))
    choose(page, "star")
    resize(page, 20)
    stroke(page, (40, 30), (80, 30))
    choose(page, "unknown")
    resize(page, 8)
    stroke(page, (20, 80), (21, 80))
    page.keyboard.press("Control+z")
    page.get_by_role("button", name="Redo").click()
    page.get_by_role("radio", name="Fill").check()
    choose(page, "circle")
    page.mouse.click(*at(page, 60, 30))
    page.get_by_role("button", name="Undo").click()
    choose(page, "square")
    page.mouse.click(*at(page, 5, 5))
    page.get_by_role("button", name="Clear square:").click()
    page.fill("#name", "cup-1")
    saved(page)

    mask = read_labels(project / "voc/SegmentationClass/cup-1.png")
    assert mask.shape == PHOTO[::-1]
    rows, columns = np.mgrid[: PHOTO[1], : PHOTO[0]] + 0.5
    away = np.hypot(columns - columns.clip(40, 80), rows - 30)
    assert (mask[away < 9] == 3).all()
    assert (mask[(away > 11) & (rows < 70)] == 0).all()
    assert (mask == 255).sum() == pytest.approx(np.pi * 16, rel=0.35)
    assert {*np.unique(mask).tolist()} == {0, 3, 255}
    assert (project / "voc/JPEGImages/cup-1.jpg").read_bytes() == photo.read_bytes()
    prepare()
    record = read_manifest(PREPARED["manifest"])["cup-1"]
    assert (record.split, record.tags, record.label_classes) == ("train", (3,), (3,))


def test_a_mask_of_the_data_set_is_mended_by_the_keyboard(page: Page, project: Path) -> None:
    former = read_labels(project / "voc/SegmentationClass/train_001.png")
    page.locator("#list button[data-id=train_001]").press("Enter")
    expect(page.locator("#status")).to_have_text(re.compile("Predicted in"), timeout=30_000)
    page.get_by_role("radio", name="Saved mask").check()
    expect(page.locator("#status")).to_have_text("The mask of the data set")
    resize(page, 1)
    page.locator("#view").focus()
    for key in ("b", "3", "Shift+ArrowRight", "Shift+ArrowRight", "Shift+ArrowDown", " "):
        page.keyboard.press(key)
    saved(page)
    wanted = former.copy()
    wanted[SIZE[1] // 2 + 1, SIZE[0] // 2 + 2] = 3
    assert np.array_equal(read_labels(project / "voc/SegmentationClass/train_001.png"), wanted)
    assert np.array_equal(read_labels(project / "voc/replaced/train_001.1.png"), former)
    prepare()


def test_maps_toggles_and_opacity_change_what_is_seen_and_nothing_else(page: Page, project: Path) -> None:
    opened(page, project.parent / "cup one.jpg")
    overlay = page.locator("#overlay")
    seen = "canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(v => v)"
    for box in page.locator("#legend input[type=checkbox]").all():
        box.uncheck()
    assert not overlay.evaluate(seen)
    page.get_by_role("button", name="Map of circle:").click()
    expect(page.locator("#status")).to_contain_text("Probability of circle")
    assert page.locator("#heat").evaluate(seen)
    expect(overlay).to_have_css("visibility", "hidden")
    page.get_by_role("button", name="Map of circle:").click()
    expect(overlay).to_have_css("visibility", "visible")
    page.locator("#opacity").fill("25")
    expect(overlay).to_have_css("opacity", "0.25")
    expect(page.get_by_role("button", name="Undo")).to_be_disabled()


def test_what_is_wrong_is_said_on_the_page(page: Page, project: Path) -> None:
    wrong = project.parent / "letter.jpg"
    wrong.write_bytes(b"%PDF-1.7")
    page.set_input_files("#file", wrong)
    expect(page.get_by_role("alert")).to_contain_text("letter.jpg is a PDF document")
    opened(page, project.parent / "cup one.jpg")
    expect(page.get_by_role("alert")).to_be_hidden()
    page.fill("#name", "../cup")
    page.get_by_role("button", name="Save as a strong mask").click()
    expect(page.get_by_role("alert")).to_contain_text("an image id is a file name without its folder")
    page.locator("#list button[data-id=val_000]").click()
    expect(page.locator("#note")).to_contain_text("--correct-validation")
    expect(page.get_by_role("button", name="Save as a strong mask")).to_be_disabled()


@pytest.mark.parametrize("width", [1280, 400])
def test_all_of_it_fits_its_window(page: Page, project: Path, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    opened(page, project.parent / "cup one.jpg")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    for name in ("Save as a strong mask", "Undo", "Zoom in"):
        box = page.get_by_role("button", name=name).bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
