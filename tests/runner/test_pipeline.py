"""Stages in one file: each a run, the next one's input the one before, whatever happens on the way."""

import json
import shutil
import signal
import subprocess
import time
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import Command, command_of, make_environment, write_jsonl
from inside import Killed, call, dying_at

FILE = """\
name: judged
engine: {kind: scripted, max_num_seqs: 4}
pool: {kind: local}
stages:
  - name: answer
    input: {path: q.jsonl, id_column: id, keep_columns: [topic]}
    num_samples: 2
  - name: judge
    input: {prompt_template: judge.j2}
  - name: keep
    select:
      where: topic != 'z' and answer.finish_reason == 'stop'
      best: judge.completion_tokens
"""
ROWS = 4


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pipeline of three stages in the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_jsonl(
        Path("q.jsonl"), [{"id": f"r{n}", "prompt": f"Say {n}", "topic": "xyz"[n % 3]} for n in range(ROWS)]
    )
    Path("judge.j2").write_text("{{ topic }}: rate {{ answer.response }}")
    Path("judged.yaml").write_text(FILE)
    return tmp_path / "judged.yaml"


def read(directory: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(directory / "data").to_pylist()
    return rows


def content(root: Path) -> dict[str, bytes]:
    """Return the files of every stage that are part of a dataset, by their paths."""
    patterns = ("**/*.parquet", "**/manifest.json", "**/README.md")
    found = [path for pattern in patterns for path in root.glob(pattern)]
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


def test_stages_are_runs_of_which_each_reads_the_one_before(pipeline: Path, capsys: Any) -> None:
    done = call(capsys, "run", "judged.yaml", "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    root = Path(told["directory"])
    assert root.parent == Path("outputs")
    assert [(stage["name"], stage["samples"], stage["kept"]) for stage in told["stages"]] == [
        ("answer", 8, 8),
        ("judge", 8, 8),
        ("keep", 8, 3),
    ]
    answered, judged = (read(Path(stage["directory"])) for stage in told["stages"][:2])
    assert {Path(stage["directory"]).parent for stage in told["stages"][:2]} == {root / "stages"}
    for before, after in zip(answered, judged, strict=True):
        topic = before.pop("topic")
        assert (after["answer"], after["topic"]) == (before, topic)
        assert after["messages"][0]["content"] == f"{topic}: rate {before['response']}"
    best: dict[int, dict[str, Any]] = {}
    for row in judged:
        at, tokens = row["answer"]["row_index"], row["completion_tokens"]
        is_kept = row["topic"] != "z" and row["answer"]["finish_reason"] == "stop"
        if is_kept and (at not in best or tokens > best[at]["completion_tokens"]):
            best[at] = row
    assert read(root) == list(best.values())
    for directory in (root, *(root / "stages").iterdir()):
        assert call(capsys, "verify", directory).code == 0


def test_the_same_command_makes_nothing_again(pipeline: Path, capsys: Any) -> None:
    first = call(capsys, "run", "judged.yaml")
    before = content(Path("outputs"))
    stamps = {path: path.stat().st_mtime_ns for path in Path("outputs").glob("**/*.parquet")}
    assert call(capsys, "run", "judged.yaml").out == first.out
    assert content(Path("outputs")) == before
    assert {path: path.stat().st_mtime_ns for path in Path("outputs").glob("**/*.parquet")} == stamps


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "stride",
    [
        pytest.param(1, marks=pytest.mark.exhaustive("a pipeline killed at every write, not at every ninth")),
        pytest.param(9),
    ],
)
def test_a_pipeline_that_is_killed_at_any_write_ends_in_the_same_bytes(
    pipeline: Path, capsys: Any, stride: int
) -> None:
    assert call(capsys, "run", "judged.yaml", "-q", "-o", "whole").code == 0
    whole = content(Path("whole"))
    assert len(whole) == 10, sorted(whole)
    for number in count(1, stride):
        shutil.rmtree("killed", ignore_errors=True)
        try:
            with dying_at(number):
                done = call(capsys, "run", "judged.yaml", "-q", "-o", "killed")
            if done.code == 0:  # It has made fewer writes.
                break
        except Killed:
            pass
        done = call(capsys, "run", "judged.yaml", "-q", "-o", "killed")
        assert (done.code, content(Path("killed")) == whole) == (0, True), (number, done.err)
    assert number > 100


@pytest.mark.parametrize("pool", ["local", pytest.param("ray", marks=pytest.mark.long)])
def test_a_pipeline_killed_by_sigkill_with_other_workers_makes_no_sample_again(
    pipeline: Path, synthia: Command, pool: str
) -> None:
    write_jsonl(Path("q.jsonl"), [{"id": f"r{n}", "prompt": f"Say {n}", "topic": "x"} for n in range(30)])
    flags = ("--pool", pool, "--set", "engine.latency_ms=30")
    whole = synthia("run", "judged.yaml", "-q", "-o", "whole", "--pool", "local")
    assert whole.returncode == 0, whole.stderr
    seen: list[int] = []
    for attempt in range(6):
        child = subprocess.Popen(
            command_of("run", "judged.yaml", "-q", "-o", "killed", *flags, "--workers", str(1 + attempt % 2)),
            env=make_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        wanted = count_finished(Path("killed")) + 12
        while child.poll() is None and count_finished(Path("killed")) < wanted:
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        seen.append(count_finished(Path("killed")))
        assert seen == sorted(seen)
    done = synthia("run", "judged.yaml", "-q", "-o", "killed", *flags)
    assert done.returncode == 0, done.stderr
    assert content(Path("killed")) == content(Path("whole"))


def count_finished(root: Path) -> int:
    """Return how many samples are in the journals and parts of all stages."""
    journaled = sum(path.read_bytes().count(b'{"finished":') for path in root.glob("**/*.wal"))
    parts = [*root.glob("stages/*/data/*.parquet"), *root.glob("data/*.parquet")]
    return journaled + sum(pq.read_metadata(path).num_rows for path in parts)


def test_another_template_is_another_stage_beside_the_old_one(pipeline: Path, capsys: Any) -> None:
    first = Path(call(capsys, "run", "judged.yaml").out.strip())
    Path("judge.j2").write_text("Say what {{ answer.response }} means")
    second = Path(call(capsys, "run", "judged.yaml").out.strip())
    assert first != second
    Path("judge.j2").write_text("{{ topic }}: rate {{ answer.response }}")
    assert Path(call(capsys, "run", "judged.yaml").out.strip()) == first


def test_a_stage_may_read_another_than_the_one_before(pipeline: Path, capsys: Any) -> None:
    text = FILE.replace(
        "  - name: keep",
        "  - name: again\n    input: {stage: answer, prompt_template: again.j2}\n  - name: keep",
    ).replace("    select:\n", "    input: {stage: again}\n    select:\n")
    Path("again.j2").write_text("Once more: {{ answer.response }}")
    Path("judged.yaml").write_text(text.replace("judge.completion_tokens", "again.completion_tokens"))
    done = call(capsys, "run", "judged.yaml")
    assert done.code == 0, done.err
    rows = read(Path(done.out.strip()))
    assert {row["messages"][0]["content"] for row in rows} == {
        f"Once more: {row['answer']['response']}" for row in rows
    }


def test_a_stage_that_ends_early_ends_the_pipeline_with_its_name(pipeline: Path, capsys: Any) -> None:
    text = FILE.replace(
        "  - name: judge\n", "  - name: judge\n    max_failures: 0\n    engine: {fail_every: 3}\n"
    )
    Path("judged.yaml").write_text(text)
    done = call(capsys, "run", "judged.yaml", "-o", "out")
    assert done.code == 3
    assert "the pipeline ended in judge" in done.err
    assert not Path("out/data").exists()
    refused = call(capsys, "status", "out")
    assert refused.code == 2
    assert "out: the last stage of this pipeline has not begun; name one in out/stages" in refused.err


def test_a_selection_of_nothing_ends_with_3_and_says_what_each_step_dropped(
    pipeline: Path, capsys: Any
) -> None:
    Path("judged.yaml").write_text(FILE.replace("topic != 'z'", "topic == 'none'"))
    done = call(capsys, "run", "judged.yaml", "-o", "out")
    assert done.code == 3
    assert "none of its 8 samples is kept: where 8" in done.err
    assert [path.name for path in Path("out").iterdir()] == ["stages"]


WRONG = {
    "a misspelt stage": ("best: judge.", "best: judg.", "judged.yaml:13:13: best: judg.completion_tokens: "
                         "there is no judg; did you mean judge?"),
    "a misspelt column": ("answer.finish_reason", "answer.finish_reson", "did you mean finish_reason?"),
    "a misspelt kept column": ("topic != 'z'", "topik != 'z'", "there is no topik; did you mean topic?"),
    "a misspelt key": ("best:", "bets:", "judged.yaml:13:7: bets: unknown key"),
    "a misspelt key of a job": ("num_samples", "num_sample", "judged.yaml:7:5: num_sample: unknown key"),
    "an unknown stage": ("    select:", "    input: {stage: jugde}\n    select:",
                         "judged.yaml:11:20: input.stage: there is no stage jugde before this one"),
    "two of a name": ("name: keep", "name: judge", "two stages are named judge"),
    "no name": ("- name: keep\n    select:", "- select:", "a stage needs a name of letters, digits and _"),
    "no input": ("path: q.jsonl, ", "", "the first stage needs an input"),
    "a selection with a key of a job": ("    select:", "    num_samples: 3\n    select:",
                                        "judged.yaml:11:5: a stage that selects generates nothing"),
    "an empty selection": (FILE[FILE.index("    select:") :], "    select: {}\n", "nothing is selected"),
    "no stages": (FILE[FILE.index("stages:") :], "stages: []\n", "judged.yaml:4:9: stages is a list"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_refused_with_its_place_before_anything_starts(
    pipeline: Path, capsys: Any, what: str
) -> None:
    old, new, said = WRONG[what]
    assert FILE.count(old) == 1
    Path("judged.yaml").write_text(FILE.replace(old, new))
    done = call(capsys, "run", "judged.yaml", "-o", "out")
    assert done.code == 2, done.err
    assert said in done.err
    assert not Path("out").exists()


def test_a_template_that_names_what_is_not_there_is_refused_before_anything_starts(
    pipeline: Path, capsys: Any
) -> None:
    Path("judge.j2").write_text("{{ anser.response }}")
    done = call(capsys, "run", "judged.yaml", "-o", "out")
    assert done.code == 2
    assert "judged.yaml:9:30: judge.j2: there is no anser; did you mean answer?" in done.err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "judged.yaml", "-n", "3"), "num_samples: each stage of a pipeline says its own"),
        (("run", "judged.yaml", "q.jsonl"), "is a pipeline: its first stage names its input"),
        (("run", "judged.yaml", "-o", "s3://b/x"), "a pipeline's output is a directory on this machine"),
        (("plan", "judged.yaml"), "a pipeline of stages, which only `synthia-batch run` takes"),
        (("run", "judged.yaml", "--dry-run"), "a pipeline of stages, which only `synthia-batch run` takes"),
    ],
)
def test_what_a_pipeline_does_not_take_is_refused(
    pipeline: Path, capsys: Any, arguments: tuple[str, ...], said: str
) -> None:
    done = call(capsys, *arguments)
    assert done.code == 2
    assert said in done.err
    assert not Path("outputs").exists()
