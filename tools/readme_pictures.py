"""Makes the pictures at the top of README: a run in a terminal, and the first screen of its report.

    python tools/readme_pictures.py

A job of the scripted engine is typed into a shell, killed with SIGKILL halfway, and typed again. What the
terminal showed is docs/images/night.svg; docs/images/report.png needs Debian's Chromium.
"""

import io
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pexpect
import pyte
from rich.console import CONSOLE_SVG_FORMAT, Console
from rich.text import Text

from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.lock import read_owner

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "images"
QUESTIONS = ROOT / "synthia_batch" / "operations" / "sample" / "questions.jsonl"
COLUMNS, LINES = 100, 40
MOST_LINES = 20
COMMAND = "synthia-batch run night.yaml"
PROMPT = "$ "
WAIT_SECONDS = 300
SCREEN = {"width": 1280, "height": 800}
COLORS = 64
"""Of the report's picture, which is then a third of its size."""
_ADDRESSES = re.compile(r"@font-face \{\{.*?\}\}|<!--.*?-->", re.DOTALL)
"""In rich's format: fonts that would be loaded from elsewhere, and where it comes from."""


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        record_night(Path(scratch), FOLDER / "night.svg")
        picture_report(find_run(Path(scratch)), FOLDER / "report.png")


def record_night(home: Path, picture: Path, latency_ms: int = 600) -> None:
    """Run the job in `home`, kill it halfway, run it again, and write what was seen to `picture`, an SVG.

    A sample takes `latency_ms`: with 600, the whole takes about a minute.
    """
    _write_job(home, latency_ms)
    screen = pyte.Screen(COLUMNS, LINES)
    with _open_shell(home) as shell:
        terminal = _Terminal(shell, screen)
        terminal.wait_for(lambda: terminal.lines == [PROMPT.strip()])
        shell.sendline(COMMAND)
        terminal.wait_for(lambda: terminal.percent >= 45)
        owner = read_owner(RunDir(find_run(home)).owner)
        if owner is None:
            raise SystemExit("the run has no owner")
        os.kill(owner.pid, signal.SIGKILL)
        terminal.feed("\r\n")  # The bar is a line without an end.
        terminal.wait_for(lambda: terminal.lines[-1] == PROMPT.strip())
        shell.sendline(COMMAND)
        terminal.wait_for(lambda: terminal.lines[-1] == PROMPT.strip() and "complete: " in terminal.text)
    lines = terminal.lines[:-1]
    if len(lines) > MOST_LINES:
        raise SystemExit(f"expected at most {MOST_LINES} lines, got {len(lines)}:\n" + "\n".join(lines))
    picture.write_text(_draw(lines), encoding="utf-8")


def picture_report(run: Path, picture: Path) -> None:
    """Write the first screen of the run's report to `picture`, a PNG, if Chromium is installed."""
    chromium = shutil.which("chromium")
    if chromium is None:
        print(f"{picture.name} is left as it was: there is no chromium here", file=sys.stderr)
        return
    from PIL import Image
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport=SCREEN)  # type: ignore[arg-type]
        page.goto(RunDir(run).report.absolute().as_uri())
        shot = page.screenshot()
        browser.close()
    Image.open(io.BytesIO(shot)).convert("RGB").quantize(COLORS).save(picture, optimize=True)


def find_run(home: Path) -> Path:
    """Return the run directory of the job in `home`."""
    (run,) = (home / "outputs").iterdir()
    return run


def _write_job(home: Path, latency_ms: int) -> None:
    shutil.copy(QUESTIONS, home)
    job = {
        "input": {"path": QUESTIONS.name, "id_column": "id", "keep_columns": ["topic"]},
        "num_samples": 40,
        "sampling": {"max_tokens": 48},
        "engine": {"kind": "scripted", "latency_ms": latency_ms, "max_num_seqs": 8, "load_seconds": 3},
        "pool": {"kind": "local", "workers": 2},
    }
    (home / "night.yaml").write_text(json.dumps(job))
    program = home / "bin" / "synthia-batch"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m synthia_batch "$@"\n')
    program.chmod(0o755)


@contextmanager
def _open_shell(home: Path) -> Iterator["pexpect.spawn[str]"]:
    # What somebody has set for their own jobs, or for their shell, must not be seen.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SYNTHIA_BATCH_")}
    path = f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}"
    shell = pexpect.spawn(
        "bash",
        ["--norc", "--noprofile", "--noediting", "-i"],
        cwd=str(home),
        env={**kept, "PATH": path, "PS1": PROMPT, "TERM": "xterm", "LC_ALL": "C.UTF-8"},
        dimensions=(LINES, COLUMNS),
        encoding="utf-8",
        use_poll=True,  # select() takes no file descriptor over 1023, which a long test run reaches.
    )
    try:
        yield shell
    finally:
        shell.close(force=True)


class _Terminal:
    """The screen of a shell."""

    def __init__(self, shell: "pexpect.spawn[str]", screen: pyte.Screen) -> None:
        self._shell = shell
        self._screen = screen
        self._stream = pyte.Stream(screen)

    @property
    def lines(self) -> list[str]:
        """The lines of the screen that are not blank."""
        return [line.rstrip() for line in self._screen.display if line.strip()]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def percent(self) -> int:
        """How far the bar is."""
        found = re.findall(r"^ *(\d+)%\|", self.text, re.MULTILINE)
        return int(found[-1]) if found else 0

    def feed(self, text: str) -> None:
        self._stream.feed(text)

    def wait_for(self, is_shown: Callable[[], bool]) -> None:
        """Read until `is_shown` holds. Ends the program after five minutes."""
        end = time.monotonic() + WAIT_SECONDS
        while not is_shown():
            if time.monotonic() > end:
                raise SystemExit("waited in vain; the terminal shows:\n" + self.text)
            try:
                self.feed(self._shell.read_nonblocking(65536, timeout=0.2))
            except pexpect.TIMEOUT:
                continue


def _draw(lines: list[str]) -> str:
    """Return the lines as an SVG of a terminal, with what was typed in bold."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), color_system="truecolor")
    for line in lines:
        is_typed = line.startswith(PROMPT)
        style = "bold" if is_typed else "red" if line == "Killed" else ""
        console.print(Text(line, style=style), highlight=False, no_wrap=True, crop=True)
    options: dict[str, Any] = {"title": "synthia-batch", "unique_id": "night"}
    return console.export_svg(code_format=_ADDRESSES.sub("", CONSOLE_SVG_FORMAT), **options)


if __name__ == "__main__":
    main()
