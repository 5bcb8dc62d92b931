"""Samples whose rows are unchanged are taken over when a stage before theirs has got more samples."""

import json
import os
import re
import shutil
import signal
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import write_jsonl
from inside import Killed, call, dying_at

from synthia_batch.runner.take_over import _EarlierRun

ROWS = 6
FILE = """\
name: judged
engine: {kind: scripted, max_num_seqs: 4}
pool: {kind: local}
stages:
  - name: answer
    input: {path: q.jsonl, id_column: id, keep_columns: [topic]}
    num_samples: 2
    engine: {fail_every: 3, fail_while_missing: mended}
  - name: judge
    input: {prompt_template: judge.j2}
    engine: {call_log: calls}
  - name: keep
    select: {best: judge.completion_tokens}
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def pipeline(tmp_path: Path, capsys: Any) -> Path:
    """The job file of a pipeline that `run_before` has run."""
    run_before(capsys, FILE)
    return tmp_path / "judged.yaml"


def run_before(capsys: Any, text: str) -> None:
    """Run a pipeline in before/ and retry its first stage; run it in whole/, where nothing fails."""
    write_jsonl(Path("q.jsonl"), [{"id": f"r{n}", "prompt": f"Say {n}", "topic": "x"} for n in range(ROWS)])
    Path("judge.j2").write_text("{{ topic }}: rate {{ answer.response }}")
    Path("judged.yaml").write_text(text)
    assert call(capsys, "run", "judged.yaml", "-q", "-o", "before").code == 0
    Path("mended").touch()
    assert call(capsys, "retry", "before", "-q").code == 0
    assert call(capsys, "run", "judged.yaml", "-q", "-o", "whole").code == 0
    Path("calls").unlink()


def read_files(root: Path) -> dict[str, bytes]:
    """Return the files of every stage that are part of a dataset, by their paths."""
    patterns = ("stages/*/*/*.parquet", "stages/*/manifest.json", "stages/*/README.md")
    found = [path for pattern in patterns for path in root.glob(pattern)]
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


def list_new() -> set[int]:
    """Return the ordinals in whole/ of the judge's samples whose answers were missing before the retry."""
    (old,) = (pq.read_table(path) for path in Path("before/stages").glob("judge-*/data"))
    (new,) = (pq.read_table(path) for path in Path("whole/stages").glob("judge-*/data"))
    known = {*old["id"].to_pylist()}
    return {number for number, name in enumerate(new["id"].to_pylist()) if name not in known}


def test_only_samples_of_new_rows_are_generated(pipeline: Path, capsys: Any) -> None:
    new = list_new()
    done = call(capsys, "run", "judged.yaml", "-o", "before", "--json")
    assert done.code == 0, done.err
    assert "8 samples taken over from before/stages/judge-" in done.err
    assert sorted(map(int, Path("calls").read_text().split())) == sorted(new)
    made = read_files(Path("before"))
    whole = read_files(Path("whole"))
    assert {name: made[name] for name in whole} == whole
    assert call(capsys, "verify", "before").code == 0
    assert json.loads(done.out)["stages"][1]["samples"] == 2 * ROWS


@pytest.mark.parametrize(
    "keys",
    [
        "num_samples: 3\n    system: [synthia, none]",
        "samples_per_file: 3\n    sampling: {logprobs: 2}\n    determinism: fast",
        "flags: [empty, duplicate]\n    drop_flagged: true",
    ],
)
def test_whatever_a_sample_has_is_taken_over_with_it(tmp_path: Path, capsys: Any, keys: str) -> None:
    text = FILE.replace("{prompt_template: judge.j2}", "{prompt_template: judge.j2}\n    " + keys)
    run_before(capsys, text)
    done = call(capsys, "run", "judged.yaml", "-o", "before")
    assert (done.code, "taken over" in done.err) == (0, True), done.err
    made, whole = read_files(Path("before")), read_files(Path("whole"))
    assert {name: made[name] for name in whole} == whole
    number = 8 * (6 if "num_samples: 3" in keys else 1)
    assert (
        len(Path("calls").read_text().split())
        <= 2 * ROWS * (6 if "num_samples: 3" in keys else 1) - number + 1
    )


def test_of_a_damaged_run_nothing_is_taken_over(pipeline: Path, capsys: Any) -> None:
    (part,) = Path("before/stages").glob("judge-*/data/*.parquet")
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    done = call(capsys, "run", "judged.yaml", "-o", "before")
    assert (done.code, "nothing is taken over from before/stages/judge-" in done.err) == (0, True), done.err
    assert len(Path("calls").read_text().split()) == 2 * ROWS
    made, whole = read_files(Path("before")), read_files(Path("whole"))
    assert {name: made[name] for name in whole} == whole


def test_damage_that_kept_size_and_time_is_found(pipeline: Path, capsys: Any) -> None:
    (part,) = Path("before/stages").glob("judge-*/data/*.parquet")
    times, content = part.stat(), bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    os.utime(part, ns=(times.st_atime_ns, times.st_mtime_ns))
    done = call(capsys, "run", "judged.yaml", "-o", "before")
    assert (done.code, "nothing is taken over from before/stages/judge-" in done.err) == (0, True), done.err
    assert len(Path("calls").read_text().split()) == 2 * ROWS


@pytest.mark.parametrize("content", [None, b"{}"])
def test_without_the_canary_answers_of_its_engines_nothing_is_taken_over(
    pipeline: Path, capsys: Any, content: bytes | None
) -> None:
    (canary,) = Path("before/stages").glob("judge-*/.synthia/canary.json")
    canary.unlink() if content is None else canary.write_bytes(content)
    done = call(capsys, "run", "judged.yaml", "-o", "before")
    assert (done.code, "nothing is taken over from before/stages/judge-" in done.err) == (0, True), done.err
    assert len(Path("calls").read_text().split()) == 2 * ROWS


def test_a_conversation_that_goes_on_longer_is_generated(capsys: Any) -> None:
    def write_turns(rows: list[list[str]]) -> None:
        write_jsonl(Path("q.jsonl"), [{"id": f"r{n}", "turns": turns} for n, turns in enumerate(rows)])

    stage = "{name: ask, input: {path: q.jsonl, id_column: id, turns_column: turns}}"
    head = "name: asked\nengine: {kind: scripted, call_log: calls}\npool: {kind: local}\n"
    select = "{name: keep, select: {best: ask.completion_tokens}}"
    Path("asked.yaml").write_text(f"{head}stages: [{stage}, {select}]\n")
    write_turns([["One?", "Two?"], ["Three?"], ["Four?"]])
    assert call(capsys, "run", "asked.yaml", "-q", "-o", "before").code == 0
    write_turns([["One?", "Two?"], ["Three?", "And then?"], ["Four?"]])
    assert call(capsys, "run", "asked.yaml", "-q", "-o", "whole").code == 0
    done = call(capsys, "run", "asked.yaml", "-o", "before")
    assert (done.code, "2 samples taken over" in done.err) == (0, True), done.err
    made, whole = read_files(Path("before")), read_files(Path("whole"))
    assert {name: made[name] for name in whole} == whole


def test_a_signal_is_heeded_between_two_files(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = "{prompt_template: judge.j2}"
    run_before(capsys, FILE.replace(keys, keys + "\n    samples_per_file: 3"))
    find = _EarlierRun.find

    def find_and_signal(self: Any, sample: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return find(self, sample)

    with monkeypatch.context() as patched:
        patched.setattr(_EarlierRun, "find", find_and_signal)
        done = call(capsys, "run", "judged.yaml", "-o", "before")
    assert (done.code, Path("calls").exists()) == (75, False), done.err
    assert re.search(r"\b[123] samples? taken over", done.err), done.err
    assert call(capsys, "run", "judged.yaml", "-q", "-o", "before").code == 0
    made, whole = read_files(Path("before")), read_files(Path("whole"))
    assert {name: made[name] for name in whole} == whole


def test_what_is_asked_otherwise_is_generated(pipeline: Path, capsys: Any) -> None:
    Path("judge.j2").write_text("{{ topic }}: rate again {{ answer.response }}")
    done = call(capsys, "run", "judged.yaml", "-o", "before")
    assert (done.code, "taken over" in done.err) == (0, False)
    assert len(Path("calls").read_text().split()) == 2 * ROWS


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "stride",
    [
        pytest.param(1, marks=pytest.mark.exhaustive("killed at every write, not at every seventh")),
        pytest.param(7),
    ],
)
def test_a_kill_at_any_write_loses_and_repeats_nothing(pipeline: Path, capsys: Any, stride: int) -> None:
    whole, new = read_files(Path("whole")), list_new()
    for number in count(1, stride):
        shutil.rmtree("killed", ignore_errors=True)
        shutil.copytree("before", "killed", symlinks=True)
        Path("calls").unlink(missing_ok=True)
        try:
            with dying_at(number):
                done = call(capsys, "run", "judged.yaml", "-q", "-o", "killed")
            if done.code == 0:  # It has made fewer writes.
                break
        except Killed:
            pass
        done = call(capsys, "run", "judged.yaml", "-q", "-o", "killed")
        assert done.code == 0, (number, done.err)
        made = read_files(Path("killed"))
        assert {name: made[name] for name in whole} == whole, number
        assert {*map(int, Path("calls").read_text().split())} == new, number
    assert number > 50
