"""The worklist: its text, and how it behaves in a real browser."""

from __future__ import annotations

import json
import re
import shutil
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from pipeline.records import Label
from training.worklist.heatmaps import encode_heatmap
from training.worklist.page import (
    Case,
    CasePictures,
    TypicalImage,
    WorklistFacts,
    data_uri,
    picture_uri,
    render_worklist,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\">&amp;'\u2028.png"
FACTS = WorklistFacts(
    source="made <b>here</b>",
    dataset_fingerprint="ab" * 32,
    model_name="made-anomaly",
    model_version="7",
    run_id="0123456789abcdef",
    scored_at="2026-05-04 03:02 UTC",
    threshold=0.5,
    threshold_words="95% of 40 normal validation images lie at or below it",
    normal_count=40,
    reference=tuple(np.linspace(0.1, 0.6, 40)),
    scored_count=30,
    notes=("Mind <i>this</i>.",),
)
CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def make_cases(count: int, pictures: int) -> list[Case]:
    """Ranked cases; the second has a hostile name, every third patient is shared."""
    image = np.zeros((30, 20, 1), np.uint8)
    image[:10, 12:] = 200
    picture = picture_uri(image)
    heat = data_uri("image/png", encode_heatmap(image[..., 0] / 200.0, low=0.0, high=1.0))
    small = picture_uri(image[:10])
    scores = np.linspace(0.9, 0.2, count)
    return [
        Case(
            HOSTILE if place == 1 else f"folder/image-{place:05d}.png",
            f"patient-{place % 3}",
            float(scores[place]),
            float(100 * scores[place]),
            bool(scores[place] > 0.5),
            Label.ANOMALOUS if place == 0 else Label.UNKNOWN,
            CasePictures(picture, heat, small) if place < pictures else None,
            (TypicalImage(HOSTILE, small), TypicalImage("typical-2.png", picture)),
            ("blurred", "pen") if place == 2 else (),
        )
        for place in range(count)
    ]


class References(HTMLParser):
    """Collects every attribute by which a page could load something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [f"{tag} {name}" for name, _ in attrs if name in {"src", "href", "srcset"}]


def test_the_page_refers_to_nothing_outside_itself() -> None:
    page = render_worklist(FACTS, make_cases(30, 5))
    references = References()
    references.feed(page)
    assert references.found == []
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    assert "default-src 'none'" in page


def test_what_it_says_is_escaped_and_complete() -> None:
    page = render_worklist(FACTS, make_cases(30, 5))
    assert "made &lt;b&gt;here&lt;/b&gt;" in page
    assert "Mind &lt;i&gt;this&lt;/i&gt;." in page
    assert HOSTILE not in page
    assert 'onerror="' not in page
    assert "embedded for the 5 most anomalous images" in page
    assert "version 7" in page
    assert render_worklist(FACTS, make_cases(30, 5)) == page
    assert "scores.parquet" not in page  # all are listed
    shortened = render_worklist(replace(FACTS, scored_count=31), make_cases(30, 5))
    assert "lists the 30 most anomalous of 31 scored images" in shortened


def test_pictures_are_small_and_keep_their_colours() -> None:
    image = np.zeros((600, 300, 3), np.uint8)
    image[:300, 150:, 0] = 255
    data = picture_uri(image).removeprefix("data:image/jpeg;base64,")
    picture = Image.open(BytesIO(b64decode(data)))
    assert picture.size == (128, 256)
    red, green, _ = picture.getpixel((100, 50))  # type: ignore[misc] # three channels
    assert red > 240
    assert green < 15


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: install it to test the page in a browser")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    """A page of 30 cases, five with pictures; any script error or request fails the test."""
    yield from open_page(browser, tmp_path, make_cases(30, 5))


def open_page(browser: Browser, folder: Path, cases: list[Case]) -> Iterator[Page]:
    file = folder / "worklist.html"
    file.write_text(render_worklist(FACTS, cases), encoding="utf-8")
    context = browser.new_context(accept_downloads=True, viewport={"width": 1400, "height": 900})
    opened = context.new_page()
    wrong: list[str] = []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    own = (file.as_uri(), "data:", "blob:")
    opened.on("request", lambda it: None if it.url.startswith(own) else wrong.append(it.url))
    opened.goto(file.as_uri())
    yield opened
    context.close()
    assert wrong == []


def listed(page: Page) -> list[str]:
    return page.locator(".case .name").all_inner_texts()


def test_cases_are_ranked_and_keys_walk_through_them(page: Page) -> None:
    assert listed(page)[0] == "image-00000.png"
    assert page.inner_text("#rank") == "Rank 1 of 30"
    assert page.inner_text("#percentile-value") == "90"
    page.keyboard.press("j")
    page.keyboard.press("ArrowDown")
    assert page.inner_text("#image-id") == "folder/image-00002.png"
    page.keyboard.press("k")
    page.keyboard.press("End")
    assert page.inner_text("#rank") == "Rank 30 of 30"
    assert "undefined" not in page.inner_text("body")
    assert page.inner_text("#threshold-words").endswith("not over the threshold")
    assert "only the 5 most anomalous" in page.inner_text("#no-picture")
    assert page.locator(".case[aria-selected=true]").get_attribute("aria-posinset") == "30"


def test_the_heatmap_toggles_and_fades(page: Page) -> None:
    heat = page.locator("#heat")
    assert heat.is_visible()
    assert page.eval_on_selector("#heat", "image => image.naturalWidth") == 20
    page.keyboard.press("t")
    assert not heat.is_visible()
    page.keyboard.press("t")
    page.locator("#fade").fill("30")
    assert page.eval_on_selector("#heat", "image => getComputedStyle(image).opacity") == "0.3"
    box, frame = heat.bounding_box(), page.locator("#picture").bounding_box()
    assert box == frame
    assert box is not None
    assert box["width"] / box["height"] == pytest.approx(20 / 30, rel=0.01)


def test_a_hostile_name_is_text(page: Page) -> None:
    page.keyboard.press("j")
    assert page.inner_text("#image-id") == HOSTILE
    assert page.title() == "Worklist: made <b>here</b>"
    assert page.locator("img[src=x]").count() == 0
    assert page.get_attribute(".case:nth-child(2) .name", "title") == HOSTILE


def test_filters_and_order(page: Page) -> None:
    page.keyboard.press("/")
    page.keyboard.type("patient-1")
    assert page.inner_text("#count") == "10 of 30 listed, 0 with verdict"
    assert page.inner_text("#image-id") == HOSTILE  # the first of those left
    page.keyboard.press("Escape")
    page.fill("#text", "")
    page.fill("#percentile", "80")
    assert page.inner_text("#count").startswith("5 of 30")
    page.fill("#percentile", "0")
    page.check("#over")
    assert page.inner_text("#count").startswith("17 of 30")
    page.uncheck("#over")
    page.select_option("#sort", "least")
    assert listed(page)[0] == "image-00029.png"
    page.select_option("#sort", "group")
    assert listed(page)[1] == "image-00003.png"
    page.fill("#text", "anomalous")
    assert listed(page) == ["image-00000.png"]
    page.fill("#text", "nothing like it")
    assert page.inner_text("#count").startswith("0 of 30")
    page.keyboard.press("Escape")
    page.keyboard.press("3")  # nothing is selected, so nothing is decided
    assert page.inner_text("#verdict-count") == "0"


def test_verdicts_are_kept_and_exported(page: Page) -> None:
    page.keyboard.press("3")
    page.keyboard.press("j")
    page.click("[data-verdict=artefact]")
    page.keyboard.press("j")
    page.keyboard.press("1")
    page.keyboard.press("1")  # taken back
    assert page.inner_text("#verdict-count") == "2"
    page.reload()
    assert page.inner_text("#verdict-count") == "2"
    assert page.get_attribute("[data-verdict=abnormal]", "aria-pressed") == "true"
    assert "abnormal" in page.inner_text(".case:nth-child(1)")
    page.select_option("#verdict-filter", "artefact")
    assert page.inner_text("#count").startswith("1 of 30")
    with page.expect_download() as download:
        page.click("#export")
    assert download.value.suggested_filename == "verdicts-made-anomaly-version-7.json"
    exported = json.loads(Path(download.value.path()).read_text())
    assert {name: exported[name] for name in ("model_name", "model_version", "run_id")} == {
        "model_name": "made-anomaly",
        "model_version": "7",
        "run_id": "0123456789abcdef",
    }
    assert exported["dataset_fingerprint"] == FACTS.dataset_fingerprint
    first, second = exported["verdicts"]
    assert (first["image_id"], first["verdict"]) == ("folder/image-00000.png", "abnormal")
    assert (second["image_id"], second["verdict"]) == (HOSTILE, "artefact")
    assert second["group_id"] == "patient-1"
    assert first["anomaly_score"] == pytest.approx(0.9)


def test_reconstruction_and_typical_images_stand_beside(page: Page) -> None:
    words = page.locator("#beside figcaption").all_inner_texts()
    assert words == ["reconstruction", "typical", "typical"]
    assert page.locator("#beside img").nth(1).get_attribute("title") == HOSTILE
    sides = "images => images.map(image => [image.naturalWidth, image.naturalHeight])"
    assert page.eval_on_selector_all("#beside img", sides) == [[20, 10], [20, 10], [20, 30]]
    page.keyboard.press("End")
    assert not page.locator("#beside").is_visible()


def test_likely_artefacts_are_marked_and_can_be_left_out(page: Page) -> None:
    assert "\u25c7 blurred, pen?" in page.inner_text(".case:nth-child(3)")
    assert not page.locator("#marks-row").is_visible()
    page.select_option("#artefact-filter", "only")
    assert listed(page) == ["image-00002.png"]
    assert page.inner_text("#marks") == "blurred, pen"
    page.select_option("#artefact-filter", "none")
    assert page.inner_text("#count").startswith("29 of 30")


def test_ten_thousand_cases_are_drawn_a_few_at_a_time(browser: Browser, tmp_path: Path) -> None:
    for page in open_page(browser, tmp_path, make_cases(10_000, 5)):
        assert page.inner_text("#count") == "10000 of 10000 listed, 0 with verdict"
        assert page.locator(".case").count() < 40
        page.eval_on_selector("#list", "list => { list.scrollTop = 5000 * 68; }")
        # The page forbids `eval`, which waiting for an expression would need.
        page.locator(".case .rank", has_text=re.compile("^ *50[0-9][0-9]")).first.wait_for()
        assert page.locator(".case").count() < 40
        page.keyboard.press("End")
        assert page.inner_text("#image-id") == "folder/image-09999.png"


def test_light_and_dark(page: Page) -> None:
    def ground() -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    before = ground()
    page.click("#theme")
    assert ground() != before
    page.keyboard.press("?")
    assert page.locator("#keys").is_visible()
