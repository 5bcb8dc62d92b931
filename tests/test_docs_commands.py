"""Every command of README, CONTRIBUTING and docs/ is run, or its page says above it why not.

A fence of `sh` holds commands, one of `python` a script; both are run, page by page and in order, in a folder
with a few sample files, with the scripted engine. A fence of `console` after them has lines that they print.
A fence with `title="NAME"` is a file that the reader writes. `<!-- not run: REASON -->` on the line above a
fence leaves it out.
"""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, make_environment
from inside import call

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md")] + sorted((ROOT / "docs").rglob("*.md"))
NAMES = {str(page.relative_to(ROOT)): page for page in PAGES}
NOT_RUN = re.compile(r"<!-- not run: (?P<reason>.+) -->")
TITLE = re.compile(r'title="(?P<title>[^"]+)"')
RUN = re.compile(r"outputs/(?P<name>[\w.-]+)-[0-9a-f]{8}(?!\w)")
"""A run directory as pages write it, with a fingerprint that stands for any."""
BY_SHELL = {"|", "<", ">", "&", "&&", ";"}
COMMAND = re.compile(r"^(\$ )?(synthia-batch|make|pip|uv|uvx|python|sbatch|ray|docker|git) ")
SCRIPTED = {"SYNTHIA_BATCH_ENGINE__KIND": "scripted", "SYNTHIA_BATCH_POOL__KIND": "local"}
SAMPLE = ROOT / "synthia_batch/operations/sample/questions.jsonl"
"""The reader's questions: those of `synthia-batch demo`, which replaces no other file."""


@dataclass(frozen=True)
class Block:
    """A fence of a page, or lines that are indented as code: those have no language."""

    page: str
    line: int
    language: str
    title: str
    reason: str
    text: str


def read_blocks(name: str) -> Iterator[Block]:
    """Yield the blocks of a page in order."""
    lines = NAMES[name].read_text().splitlines()
    number = 0
    while number < len(lines):
        found = re.match(r"^(?P<fence>`{3,})(?P<language>\w*) ?(?P<rest>.*)$", lines[number])
        if found is None:
            number += 1
            continue
        end = lines.index(found["fence"], number + 1)
        title, above = TITLE.search(found["rest"]), NOT_RUN.fullmatch(lines[number - 1])
        yield Block(
            page=name, line=number + 1, language=found["language"], title=title["title"] if title else "",
            reason=above["reason"] if above else "", text="\n".join(lines[number + 1 : end]) + "\n",
        )  # fmt: skip
        number = end + 1


def list_commands(block: Block) -> list[str]:
    """Return the commands of a block of shell, those over several lines joined."""
    joined = block.text.replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def is_run(block: Block) -> bool:
    return block.language in ("sh", "python") and not block.reason


RUNNING = [name for name in NAMES if any(is_run(block) for block in read_blocks(name))]


@pytest.mark.parametrize("name", RUNNING)
def test_the_commands_of_a_page_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    make_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    for key, value in SCRIPTED.items():
        monkeypatch.setenv(key, value)
    printed = ""
    for block in read_blocks(name):
        if block.title:
            Path(block.title).write_text(block.text)
        elif is_run(block) and block.language == "python":
            printed = run_shell([sys.executable, "-c", RUN.sub(find_run, block.text)], block)
        elif is_run(block):
            printed = "".join(run_command(command, block, capsys) for command in list_commands(block))
        elif block.language == "console" and not block.reason:
            assert [line for line in block.text.splitlines() if line not in printed] == [], printed


def make_files(folder: Path) -> None:
    """Write the files that pages speak of as the reader's own."""
    (folder / "questions.jsonl").write_bytes(SAMPLE.read_bytes())
    rows = [json.loads(line) for line in SAMPLE.read_text().splitlines()]
    pq.write_table(pa.Table.from_pylist(rows), folder / "questions.parquet")
    for name in ("judge.jinja", "score.json"):
        (folder / name).write_bytes((ROOT / "jobs/pipelines" / name).read_bytes())
    bin_folder = folder / ".bin"
    bin_folder.mkdir()
    script = bin_folder / "synthia-batch"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m synthia_batch "$@"\n')
    script.chmod(0o755)


def run_command(command: str, block: Block, capsys: Any) -> str:
    """Run a command that must succeed; return what it printed."""
    words = shlex.split(command, comments=True)
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    if words[0] != "synthia-batch" or BY_SHELL & set(lexer):
        return run_shell(["bash", "-euo", "pipefail", "-c", command], block)
    done = call(capsys, *(RUN.sub(find_run, word) for word in words[1:]))
    assert done.code == 0, f"{block.page}:{block.line}: {command}\n{done.err}"
    return done.out + done.err


def run_shell(command: list[str], block: Block) -> str:
    path = f"{Path.cwd() / '.bin'}:/usr/bin:/bin"
    done = subprocess.run(
        command, env=make_environment(**SCRIPTED, PATH=path), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{block.page}:{block.line}: {command[-1]}\n{done.stderr}"
    return done.stdout + done.stderr


def find_run(found: re.Match[str]) -> str:
    """Return the newest run of that name."""
    there = sorted(Path("outputs").glob(f"{found['name']}-*"), key=lambda path: path.stat().st_mtime)
    assert there, f"no earlier command of the page has made {found[0]}"
    return str(there[-1])


@pytest.mark.parametrize("name", NAMES)
def test_every_command_stands_in_a_fence_of_commands(name: str) -> None:
    others = [block for block in read_blocks(name) if block.language not in ("sh", "python")]
    lines = [line for block in others if not block.reason for line in block.text.splitlines()]
    hidden = [line for line in lines if COMMAND.match(line)]
    text = re.sub(r"^(`{3,}).*?^\1$", "", NAMES[name].read_text(), flags=re.MULTILINE | re.DOTALL)
    hidden += [line for line in text.splitlines() if line[:4] == "    "]
    assert hidden == [], "put them into ```sh, or say why they are not run: <!-- not run: REASON -->"


def test_every_target_that_a_page_names_is_one_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    pages = "\n".join(page.read_text() for page in PAGES)
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", pages, re.MULTILINE))
    assert named
    assert named - targets == set()


def test_most_pages_of_commands_are_run() -> None:
    tutorials = {"README.md", "docs/tutorials/first-run.md", "docs/tutorials/first-pipeline.md"}
    assert tutorials | {"docs/how-to/recipes.md", "docs/how-to/export.md"} <= set(RUNNING)


PLACES = ("synthia_batch", "tests", "benchmarks", "jobs", "tools", "examples", "inputs")
PATH = re.compile(rf"`((?:{'|'.join(PLACES)})/[\w./-]*\w)(?:::(\w+))?`")
TEST = re.compile(r"`(?:[\w/]*/)?(test_\w+\.py)(?:::(\w+))?`")


@pytest.mark.parametrize("name", NAMES)
def test_every_file_and_test_that_a_page_names_exists(name: str) -> None:
    text = NAMES[name].read_text()
    assert [path for path, _ in PATH.findall(text) if not (ROOT / path).exists()] == []
    for file, test in TEST.findall(text):
        found = next((ROOT / "tests").rglob(file), None)
        assert found is not None, file
        assert not test or f"def {test}(" in found.read_text(), f"{file}::{test}"
