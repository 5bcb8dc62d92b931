"""The page of a run in a real browser: quiet, harmless, readable. Debian's Chromium, driven by playwright."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, command_of, make_environment
from hostile import FILE_NAME, MARK, TEXTS, add_history, make_hostile_run

from synthia_batch.results.report.page import render_page
from synthia_batch.results.report.summary import read_report

PROMISE = "CHROMIUM_IS_PROMISED"
"""Set where Chromium must be there, as in .ci/run: its absence is then a failure."""
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
WIDTHS = (390, 1280)
SCHEMES = ("light", "dark")

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = shutil.which("chromium")
    if path is None:
        reason = "there is no chromium here: apt-get install chromium"
        if os.environ.get(PROMISE):
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@dataclass
class Watched:
    """An open page, and what it did that it must not do."""

    page: Any
    path: Path
    noise: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def note_request(self, request: Any) -> None:
        if not request.url.startswith("data:"):  # What is inside the page is no request.
            self.requests.append(request.url)

    def check_quiet(self) -> None:
        assert self.noise == []
        assert self.requests == [self.path.as_uri()], "the page asked for more than itself"


@contextmanager
def watch(browser: Any, path: Path, width: int = 1280, scheme: str = "light") -> Iterator[Watched]:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    watched = Watched(page, path)
    page.on("console", lambda message: watched.noise.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: watched.noise.append(f"error: {error}"))
    page.on("dialog", lambda dialog: watched.noise.append(f"dialog: {dialog.message}"))
    page.on("request", watched.note_request)
    page.goto(path.as_uri())
    try:
        yield watched
    finally:
        page.close()


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run in which every text is hostile, those that only the plan can hold included."""
    home = tmp_path_factory.mktemp("hostile")
    out = make_hostile_run(home)
    add_history(out)
    report = read_report(out)
    model = {**report.head.identity["model"], "name": TEXTS[2]}
    identity = {**report.head.identity, "model": model, TEXTS[0]: TEXTS[3]}
    head = replace(report.head, name=TEXTS[1], directory=TEXTS[2], identity=identity, writer=TEXTS[3])
    page = home / "report.html"
    page.write_bytes(render_page(replace(report, head=head)).encode())
    return page


@pytest.fixture(scope="module")
def plain_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the shipped questions, made by the scripted engine: two systems, some failures."""
    home = tmp_path_factory.mktemp("plain")
    command = command_of(
        "run", ROOT / "inputs" / "questions.parquet", "--engine", "scripted", "--pool", "local", "-q",
        "-s", "synthia", "-s", "none", "-o", home / "out", "--max-tokens", "12",
        "--set", "engine.fail_every=9", "--set", "report=true",
    )  # fmt: skip
    done = subprocess.run(command, env=make_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return home / "out" / "report.html"


def find_page(name: str, request: pytest.FixtureRequest) -> Path:
    return Path(request.getfixturevalue(name))


@pytest.mark.parametrize("name", ["hostile_page", "plain_page"])
def test_the_page_says_nothing_and_asks_for_nothing(
    browser: Any, name: str, request: pytest.FixtureRequest
) -> None:
    with watch(browser, find_page(name, request)) as watched:
        watched.page.wait_for_load_state("networkidle")
        for link in watched.page.locator(".choices a").all():
            link.click()
        for link in watched.page.locator("nav a").all():
            link.click()
        assert watched.noise == []
        assert {url.partition("#")[0] for url in watched.requests} == {watched.path.as_uri()}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["hostile_page", "plain_page"])
def test_the_page_fits_its_window_and_is_not_blank(
    browser: Any, name: str, width: int, scheme: str, request: pytest.FixtureRequest
) -> None:
    from PIL import Image

    with watch(browser, find_page(name, request), width, scheme) as watched:
        watched.check_quiet()
        for link in watched.page.locator(".choices a").all():
            link.click()
            wide, room = watched.page.evaluate(
                "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
            )
            assert wide <= room, f"{link.inner_text()}: {wide} pixels in {room}"
        picture = Image.open(BytesIO(watched.page.screenshot()))
    assert picture.width == width
    colors = picture.convert("RGB").getcolors(maxcolors=1 << 24) or []
    assert len(colors) > 100, "the picture is blank"
    # The paper, and most of the picture, is as light or as dark as was asked for.
    most = max(colors)[1]
    assert (sum(most) > 3 * 128) == (scheme == "light"), most


def test_what_was_written_to_harm_is_read_and_not_run(browser: Any, hostile_page: Path) -> None:
    with watch(browser, hostile_page) as watched:
        page = watched.page
        assert page.evaluate("typeof window.pwned") == "undefined"
        assert page.evaluate("document.scripts.length") == 0
        alien = page.evaluate(
            "[...document.querySelectorAll('iframe, img, object, embed, base, form, audio, video')].length"
        )
        assert alien == 0
        attributes = page.evaluate(
            "[...document.querySelectorAll('*')].flatMap(e => [...e.attributes])"
            ".filter(a => a.name.startsWith('on') || /^\\s*javascript:/i.test(a.value)).map(a => a.name)"
        )
        assert attributes == []
        links = page.evaluate("[...document.links].map(a => a.getAttribute('href'))")
        assert all(link.startswith("#") for link in links)
        assert page.evaluate("document.querySelectorAll('style').length") == 1
        text = page.evaluate("document.body.textContent")
        for hostile in TEXTS[:8]:
            assert hostile in text, "what somebody wrote must be there to be read"
        assert FILE_NAME in text
        watched.check_quiet()


def test_directions_and_controls_are_seen_and_do_not_act(browser: Any, hostile_page: Path) -> None:
    with watch(browser, hostile_page) as watched:
        text = watched.page.evaluate("document.body.textContent")
        assert "[U+202E]evil[U+202D] [U+2066]isolated" in text
        assert "\u2400\u2401\u2407\u2408\u241b[31m" in text
        assert not any(mark in text for mark in "\u202e\u202d\u2066\x00\x1b\x07")
        # Each text is a world of its own: what it does to the direction of writing ends with it.
        directions = watched.page.evaluate(
            "[...document.querySelectorAll('.text')].map(e => getComputedStyle(e).unicodeBidi)"
        )
        assert directions
        assert set(directions) <= {"isolate", "plaintext"}


def test_an_answer_of_100_kb_is_cut_and_the_page_says_where_it_is(browser: Any, hostile_page: Path) -> None:
    assert hostile_page.stat().st_size < 2_000_000
    with watch(browser, hostile_page) as watched:
        page = watched.page
        page.locator(".choices [href='#panel-longest']").click()
        panel = page.locator("#panel-longest")
        assert "of 100,000 characters; full text: row " in panel.inner_text()
        assert "of data/train-00000-of-00001.parquet" in panel.inner_text()
        folded = panel.locator("details.fold").first
        assert folded.get_attribute("open") is None
        folded.locator("summary").click()
        assert folded.get_attribute("open") is not None


def test_the_tabs_show_one_kind_of_sample_at_a_time(browser: Any, plain_page: Path) -> None:
    with watch(browser, plain_page) as watched:
        page = watched.page
        for kind in ("random", "longest", "truncated", "failed", "flagged"):
            page.locator(f".choices [href='#panel-{kind}']").click()
            shown = page.locator(".panel:visible")
            assert [one.get_attribute("id") for one in shown.all()] == [f"panel-{kind}"]
        page.locator(".choices [href='#panel-failed']").click()
        assert "scripted_failure" in page.locator("#panel-failed").inner_text()
        page.locator(".choices [href='#panel-random']").click()
        page.locator("#panel-random details summary").first.click()
        assert "You are Synthia" in page.locator("#panel-random").inner_text()


def test_the_verdict_stands_first_and_says_what_to_do(browser: Any, plain_page: Path) -> None:
    with watch(browser, plain_page, 390) as watched:
        verdict = watched.page.locator("#verdict")
        assert verdict.bounding_box()["y"] < 300
        text = verdict.inner_text()
        assert "Complete: 49 of 56 samples are finished, 7 failed." in text
        assert "were cut off at 12 tokens: raise --max-tokens." in text


def test_a_sentence_of_the_verdict_leads_to_its_samples(browser: Any, plain_page: Path) -> None:
    with watch(browser, plain_page, 390) as watched:
        page = watched.page
        for sentence, panel in (("cut off at", "panel-truncated"), ("failed: ", "panel-failed")):
            page.locator("#verdict li", has_text=sentence).locator("a").click()
            shown = page.locator(".panel:visible")
            assert [one.get_attribute("id") for one in shown.all()] == [panel]
            page.wait_for_function(
                "id => document.getElementById(id).getBoundingClientRect().top < innerHeight", arg=panel
            )
            chosen = page.locator(f".choices [href='#{panel}']")
            other = page.locator(".choices [href='#panel-random']")
            colors = {one.evaluate("e => getComputedStyle(e).backgroundColor") for one in (chosen, other)}
            assert len(colors) == 2, "one of them is marked"


def test_a_script_in_the_page_would_not_run(browser: Any, plain_page: Path, tmp_path: Path) -> None:
    """The page's policy forbids what its escaping prevents: either alone would do."""
    path = tmp_path / "report.html"
    harm = f"<script>{MARK}</script><img src=x onerror={MARK}></main>"
    path.write_text(plain_page.read_text().replace("</main>", harm))
    with watch(browser, path) as watched:
        watched.page.wait_for_load_state("networkidle")
        assert watched.page.evaluate("typeof window.pwned") == "undefined"
        assert any("Content Security Policy" in noise for noise in watched.noise)
