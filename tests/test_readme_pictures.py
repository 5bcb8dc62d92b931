"""The recording at the top of README is one that its tool still makes, from a run that is really killed."""

import html
import re
import runpy
from pathlib import Path

import pytest
from conftest import ROOT

TOOL = runpy.run_path(str(ROOT / "tools" / "readme_pictures.py"))
FOLDER = ROOT / "docs" / "images"


def read_lines(picture: Path) -> list[str]:
    """Return the lines of a recording, each piece of which is a text of its own, by their height."""
    lines: dict[str, str] = {}
    pieces = re.findall(r'<text class="night-r\d+"[^>]* y="([\d.]+)"[^>]*>([^<]*)<', picture.read_text())
    for height, text in pieces:
        lines[height] = lines.get(height, "") + html.unescape(text).replace("\xa0", " ")
    return [line.strip() for line in lines.values()]


def list_words(picture: Path) -> set[str]:
    """Return the words of a recording: no numbers, which differ from run to run, and no bars."""
    return {word for line in read_lines(picture) for word in re.findall(r"[A-Za-z][\w./'-]*", line)}


@pytest.mark.long
def test_the_recording_has_the_words_that_a_run_prints_today(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    TOOL["record_night"](tmp_path / "home", tmp_path / "night.svg", latency_ms=150)
    made, kept = tmp_path / "night.svg", FOLDER / "night.svg"
    assert list_words(made) == list_words(kept), "run: python tools/readme_pictures.py"


def test_the_recording_shows_a_kill_and_a_resume_in_twenty_lines() -> None:
    lines = read_lines(FOLDER / "night.svg")
    assert len(lines) <= 20
    commands = [line for line in lines if line.startswith("$ ")]
    assert commands == ["$ synthia-batch run night.yaml"] * 2, "the same again"
    first, second = (at for at, line in enumerate(lines) if line.startswith("$ "))
    assert "Killed" in lines[first:second]
    assert any(line.startswith("resuming outputs/") for line in lines[second:])
    assert any(line.startswith("complete: 1120 of 1120 samples finished") for line in lines[second:])


def test_the_pictures_are_small_and_name_nothing_of_a_machine() -> None:
    for picture in sorted(FOLDER.iterdir()):
        assert picture.stat().st_size < 150_000, picture
    text = (FOLDER / "night.svg").read_text()
    assert not re.search(r"/(tmp|home|root|work)\b|https?://(?!www\.w3\.org/)", text)
    readme = (ROOT / "README.md").read_text()
    assert {path.name for path in FOLDER.iterdir()} == set(re.findall(r"docs/images/([\w.]+)", readme))
