"""Stages in one file: each a run, the next one's input the one before, whatever happens on the way."""

import json
import os
import shutil
import signal
import subprocess
import time
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import Command, command_of, make_environment, write_jsonl
from inside import Killed, call, dying_at

from synthia_batch.core.console import Display
from synthia_batch.errors import UsageError
from synthia_batch.job.loading.job_file import read_job_file
from synthia_batch.job.loading.pipeline_file import read_pipeline
from synthia_batch.job.resolved import EngineSpec
from synthia_batch.runner.pipeline import run_pipeline, run_stages
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.lock import RunLock
from synthia_batch.workers.engine import Engine, Placement
from synthia_batch.workers.pools import local

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
    assert (root.parent, told["state"]) == (Path("outputs"), "complete")
    assert [(one["name"], one["state"], one["samples"], one["kept"]) for one in told["stages"]] == [
        ("answer", "complete", 8, 8),
        ("judge", "complete", 8, 8),
        ("keep", "complete", 8, 3),
    ]
    assert {Path(stage["directory"]).parent for stage in told["stages"]} == {root / "stages"}
    answered, judged, kept = (read(Path(stage["directory"])) for stage in told["stages"])
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
    assert kept == list(best.values())
    verified = call(capsys, "verify", root, "--json")
    assert verified.code == 0
    assert [one["state"] for one in json.loads(verified.out)["stages"]] == ["complete"] * 3
    refused = call(capsys, "verify", root, "--repair")
    assert refused.code == 2
    assert f"{root}: a pipeline, whose stages are runs; name one in {root}/stages: answer-" in refused.err


def count_loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which each load of an engine in this process adds."""
    loads: list[str] = []
    load = local.load_engine

    def note(spec: EngineSpec, placement: Placement) -> Engine:
        loads.append(spec.kind)
        return load(spec, placement)

    monkeypatch.setattr(local, "load_engine", note)
    return loads


def test_stages_with_the_same_engine_load_it_once(
    pipeline: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Also beyond a selection, and with other sampling; the kills below compare with engines loaded anew."""
    asks = "input: {prompt_template: judge.j2}"
    more = f"  - name: again\n    {asks}\n    sampling: {{max_tokens: 5, temperature: 0.1}}\n"
    pipeline.write_text(FILE.replace(asks, asks + "\n    structured: {choice: [good, bad]}") + more)
    loads = count_loads(monkeypatch)
    done = call(capsys, "run", "judged.yaml", "--json")
    assert done.code == 0, done.err
    assert (len(loads), done.err.count("the engines stay loaded")) == (1, 2)
    _, judged, _, again = (read(Path(stage["directory"])) for stage in json.loads(done.out)["stages"])
    assert {row["response"] for row in judged} == {"good", "bad"}
    assert max(row["completion_tokens"] for row in again) == 5

    pipeline.write_text(pipeline.read_text().replace("temperature: 0.1}", "temperature: 0.1}\n    seed: 1"))
    done = call(capsys, "run", "judged.yaml")
    assert (done.code, len(loads)) == (0, 2), "stages that are complete load nothing"


def test_a_stage_with_another_engine_loads_it_when_the_one_before_has_ended(
    pipeline: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    asks = "input: {prompt_template: judge.j2}"
    pipeline.write_text(FILE.replace(asks, asks + "\n    engine: {max_num_seqs: 2}"))
    loads = count_loads(monkeypatch)
    done = call(capsys, "run", "judged.yaml")
    assert (done.code, len(loads)) == (0, 2), done.err
    assert "stay loaded" not in done.err


def test_engines_in_ray_processes_stay_loaded_too(pipeline: Path, synthia: Command, capsys: Any) -> None:
    pipeline.write_text(FILE.replace("kind: local", "kind: ray"))
    done = synthia("run", "judged.yaml", "--workers", "2", "-o", "out")
    assert done.returncode == 0, done.stderr
    logs = sorted(Path("out").glob("stages/judge-*/.synthia/logs/worker-*.log"))
    # The other worker may have been placed too late for the first stage.
    assert any("the engine was loaded for an earlier run: " in log.read_text() for log in logs)
    pipeline.write_text(FILE)
    assert call(capsys, "run", "judged.yaml", "-o", "plain").code == 0
    assert content(Path("out")) == content(Path("plain"))


def test_the_same_command_makes_nothing_again(pipeline: Path, capsys: Any) -> None:
    first = call(capsys, "run", "judged.yaml")
    before = content(Path("outputs"))
    stamps = {path: path.stat().st_mtime_ns for path in Path("outputs").glob("**/*.parquet")}
    assert call(capsys, "run", "judged.yaml").out == first.out
    assert content(Path("outputs")) == before
    assert {path: path.stat().st_mtime_ns for path in Path("outputs").glob("**/*.parquet")} == stamps


STEPS = FILE.replace(
    "      best:",
    "      combine: {tokens: {mean: judge.completion_tokens}}\n"
    "      decontaminate: {against: benchmark.jsonl, column: text, on: topic}\n"
    "      best:",
).replace("best: judge.completion_tokens", "best: tokens")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("file", [FILE, STEPS], ids=["plain", "combine and decontaminate"])
@pytest.mark.parametrize(
    "stride",
    [
        pytest.param(1, marks=pytest.mark.exhaustive("a pipeline killed at every write, not at every ninth")),
        pytest.param(9),
    ],
)
def test_a_pipeline_that_is_killed_at_any_write_ends_in_the_same_bytes(
    pipeline: Path, capsys: Any, stride: int, file: str
) -> None:
    write_jsonl(Path("benchmark.jsonl"), [{"text": "y"}])
    pipeline.write_text(file)
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
    parts = root.glob("stages/*/data/*.parquet")
    return journaled + sum(pq.read_metadata(path).num_rows for path in parts)


def test_it_can_end_after_a_stage_and_go_on_later(pipeline: Path, capsys: Any) -> None:
    half = call(capsys, "run", "judged.yaml", "-o", "out", "--until", "judge", "--json")
    told = json.loads(half.out)
    assert (half.code, told["state"]) == (0, "incomplete")
    assert [stage["name"] for stage in told["stages"]] == ["answer", "judge"]
    assert "ended after judge, as --until says" in half.err
    stages = json.loads(call(capsys, "status", "out", "--json").out)["stages"]
    assert [stage["state"] for stage in stages] == ["complete", "complete", "not begun"]
    again = call(capsys, "run", "judged.yaml", "-o", "out", "--until", "judge", "-q")
    assert (again.code, again.out.strip()) == (0, told["stages"][-1]["directory"])
    assert call(capsys, "run", "judged.yaml", "-o", "out", "-q").code == 0
    assert call(capsys, "run", "judged.yaml", "-o", "whole", "-q").code == 0
    assert content(Path("out")) == content(Path("whole"))
    for command, wrong in (
        (("judged.yaml", "--until", "jugde"), "--until jugde: there is no such stage; did you mean judge?"),
        (("judged.yaml", "--until", "x"), "there is no such stage; there are answer, judge, keep"),
        (("q.jsonl", "--engine", "scripted", "--until", "judge"), "--until judge: this is a single job"),
    ):
        refused = call(capsys, "run", *command, "-o", "wrong")
        assert (refused.code, wrong in refused.err) == (2, True), refused.err
    assert not Path("wrong").exists()


def test_only_one_stage_is_played_behind_those_that_are_complete(pipeline: Path, capsys: Any) -> None:
    asks = "input: {prompt_template: judge.j2}"
    pipeline.write_text(FILE.replace("  - name: keep", f"  - name: aside\n    {asks}\n  - name: keep"))
    early = call(capsys, "run", "judged.yaml", "-o", "out", "--only", "judge")
    assert early.code == 2
    assert (
        "the stage answer before it is not complete as the file says it; run with --until answer" in early.err
    )
    assert not Path("out").exists()
    assert call(capsys, "run", "judged.yaml", "-o", "out", "--until", "answer", "-q").code == 0
    done = call(capsys, "run", "judged.yaml", "-o", "out", "--only", "judge", "--json")
    told = json.loads(done.out)
    assert (done.code, told["state"]) == (0, "incomplete")
    assert [stage["name"] for stage in told["stages"]] == ["answer", "judge"]
    assert "ended after judge, as --only says" in done.err
    assert [path.name.partition("-")[0] for path in sorted(Path("out/stages").iterdir())] == [
        "answer",
        "judge",
    ]

    Path("judge.j2").write_text("Otherwise: {{ answer.response }}")
    other = call(capsys, "run", "judged.yaml", "-o", "out", "--only", "aside")
    assert (other.code, "the stage judge before it is not complete as" in other.err) == (2, True)
    pipeline.write_text(pipeline.read_text().replace("num_samples: 2", "num_samples: 1"))
    other = call(capsys, "run", "judged.yaml", "-o", "out", "--only", "judge")
    assert (other.code, "the stage answer before it is not complete as" in other.err) == (2, True)
    assert len([*Path("out/stages").iterdir()]) == 2
    for flags, wrong in (
        (("--only", "jugde"), "--only jugde: there is no such stage; did you mean judge?"),
        (("--only", "judge", "--until", "judge"), "--until and --only: name a stage with one of them"),
    ):
        refused = call(capsys, "run", "judged.yaml", "-o", "out", *flags)
        assert (refused.code, wrong in refused.err) == (2, True), refused.err


def test_a_stage_that_was_complete_and_is_not_there_is_missed(pipeline: Path, capsys: Any) -> None:
    made = Path(call(capsys, "run", "judged.yaml", "-o", "out", "-q").out.strip())
    before = content(Path("out"))
    shutil.rmtree(made)
    assert "keep    lost: its directory is not there" in call(capsys, "status", "out").out
    stages = json.loads(call(capsys, "status", "out", "--json").out)["stages"]
    assert [stage["state"] for stage in stages] == ["complete", "complete", "lost"]
    found = call(capsys, "verify", "out")
    assert found.code == 4
    assert (
        "the run of the stage keep was complete, and is not there: restore it from a copy, or run"
        in found.out
    )
    assert call(capsys, "run", "judged.yaml", "-o", "out", "-q").code == 0
    assert content(Path("out")) == before
    assert call(capsys, "verify", "out").code == 0


def test_python_plays_the_stages_of_a_file_or_of_keys(pipeline: Path) -> None:
    half = run_stages(Path("judged.yaml"), until="answer")
    assert (half.is_done, half.is_complete, [stage.name for stage in half.stages]) == (
        True,
        False,
        ["answer"],
    )
    whole = run_stages("judged.yaml")
    assert (whole.directory, whole.is_complete) == (half.directory, True)
    keys = {
        "name": "judged",
        "engine": {"kind": "scripted", "max_num_seqs": 4},
        "pool": {"kind": "local"},
        "output": "keys",
        "stages": [
            {
                "name": "answer",
                "input": {"path": Path("q.jsonl"), "id_column": "id", "keep_columns": ("topic",)},
                "num_samples": 2,
            },
            {"name": "judge", "input": {"prompt_template": "judge.j2"}},
        ],
    }
    made = run_stages(keys)
    assert [(stage.name, stage.kept) for stage in made.stages] == [("answer", 8), ("judge", 8)]
    assert read(made.stages[1].result.directory) == read(whole.stages[1].result.directory)
    with pytest.raises(UsageError, match="there are no stages; a single job is for run_job"):
        run_stages({"input": {"path": "q.jsonl"}})


def test_accept_is_checked_against_the_samples_of_a_run_that_is_named(pipeline: Path, capsys: Any) -> None:
    run = call(capsys, "run", "judged.yaml", "-o", "out", "--until", "answer", "-q").out.strip()
    job = ("run", run, "--prompt-template", "judge.j2", "--engine", "scripted", "--pool", "local", "-q")
    kept = ("--keep-columns", "topic,answer", "-o", "again")
    for accept, wrong in (("answer.respons != ''", "answer has no respons"), ("answer.response != ''", "")):
        for command in ("plan", "run"):
            told = call(capsys, command, *job[1:-1], *kept, "--accept", accept)
            assert (told.code, wrong in told.err) == (2 if wrong else 0, True), told.err
        assert Path("again/data").exists() is not bool(wrong)


BRANCHES = FILE.replace(
    "      best: judge.completion_tokens\n",
    "      best: judge.completion_tokens\n"
    "  - name: other\n    input: {stage: judge}\n    select: {limit: 2}\n",
)


def test_a_branch_that_is_changed_leaves_the_other_and_no_report_of_before(
    pipeline: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.write_text(BRANCHES)
    assert call(capsys, "run", "judged.yaml", "-o", "out", "-q", "--until", "judge").code == 0
    some = call(capsys, "run", "judged.yaml", "-o", "out", "-q", "--only", "other", "--json")
    assert (some.code, json.loads(some.out)["state"]) == (0, "incomplete")
    done = call(capsys, "run", "judged.yaml", "-o", "out", "--json", "--set", "report=true")
    assert (done.code, json.loads(done.out)["state"]) == (0, "complete")
    assert Path("out/report.html").exists()
    pipeline.write_text(BRANCHES.replace("topic != 'z'", "topic != 'y'") + "max_failures: 3\n")
    assert call(capsys, "run", "judged.yaml", "-o", "out", "-q", "--only", "keep").code == 0
    told = json.loads(call(capsys, "status", "out", "--json").out)
    assert [stage["state"] for stage in told["stages"]] == ["complete"] * 4
    assert not Path("out/report.html").exists()
    Path("sub").mkdir()
    monkeypatch.chdir("sub")
    same = call(capsys, "run", "../judged.yaml", "-o", "../out", "--only", "other", "-q")
    assert same.code == 0, same.err
    wrong = call(capsys, "run", "../judged.yaml", "--dry-run", "--until", "judge")
    assert (wrong.code, "leave --until and --only out" in wrong.err) == (2, True)


def test_verify_finds_a_stage_that_is_not_made_of_the_one_before(pipeline: Path, capsys: Any) -> None:
    failing = "    num_samples: 2\n    engine: {fail_every: 3, fail_while_missing: mended}\n"
    Path("judged.yaml").write_text(FILE.replace("    num_samples: 2\n", failing))
    assert call(capsys, "run", "judged.yaml", "-q", "-o", "out").code == 0
    assert call(capsys, "verify", "out").out.count("no findings") == 3
    (answer,), (judge,) = Path("out/stages").glob("answer-*"), Path("out/stages").glob("judge-*")
    (part,) = (judge / "data").iterdir()
    whole = part.read_bytes()
    part.write_bytes(whole + b"x")
    found = call(capsys, "verify", "out")
    assert found.code == 4
    assert f"out/stages/{judge.name}: 1 finding:" in found.out
    part.write_bytes(whole)
    Path("mended").touch()
    assert call(capsys, "retry", str(answer), "-q").code == 0
    found = call(capsys, "verify", "out")
    assert found.code == 4
    assert "its rows are not the samples that answer has now: run the pipeline again" in found.out


def test_what_is_changed_in_a_stage_leaves_those_before_it_as_they_are(pipeline: Path, capsys: Any) -> None:
    first = call(capsys, "run", "judged.yaml")
    (answer,) = Path("outputs").glob("*/stages/answer-*/data/*.parquet")
    stamp = answer.stat()
    Path("judge.j2").write_text("Say what {{ answer.response }} means")
    second = call(capsys, "run", "judged.yaml")
    Path("judged.yaml").write_text(FILE.replace("topic != 'z'", "topic != 'y'"))
    third = call(capsys, "run", "judged.yaml", "--set", "pool.workers=2")
    assert [done.code for done in (first, second, third)] == [0, 0, 0]
    assert len({done.out for done in (first, second, third)}) == 3
    assert [path.stat() for path in Path("outputs").glob("*/stages/answer-*/data/*.parquet")] == [stamp]
    assert len(list(Path("outputs").glob("*/stages/judge-*"))) == 2
    Path("judge.j2").write_text("{{ topic }}: rate {{ answer.response }}")
    Path("judged.yaml").write_text(FILE)
    assert call(capsys, "run", "judged.yaml").out == first.out


def test_what_a_retry_has_changed_goes_through_the_stages_behind_it(pipeline: Path, capsys: Any) -> None:
    failing = "    num_samples: 2\n    engine: {fail_every: 3, fail_while_missing: mended}\n"
    Path("judged.yaml").write_text(FILE.replace("    num_samples: 2\n", failing))
    before = call(capsys, "run", "judged.yaml", "-q", "-o", "out", "--json")
    assert json.loads(before.out)["stages"][1]["samples"] == 5
    (answer,) = Path("out/stages").glob("answer-*")
    Path("mended").touch()
    assert call(capsys, "retry", str(answer), "-q").code == 0
    assert call(capsys, "verify", "out").code == 4
    after = call(capsys, "run", "judged.yaml", "-q", "-o", "out", "--json")
    assert after.code == 0, after.err
    assert json.loads(after.out)["stages"][1]["samples"] == 8
    assert call(capsys, "verify", "out").code == 0
    assert len(list(Path("out/stages").glob("judge-*"))) == 2


def test_a_signal_at_the_end_of_a_stage_ends_the_pipeline(pipeline: Path, capsys: Any) -> None:
    class Stopping(Display):
        def close(self) -> None:
            super().close()
            os.kill(os.getpid(), signal.SIGTERM)

    layer = read_job_file(pipeline)
    done = run_pipeline(read_pipeline(layer, pipeline), [], lambda: Stopping(quiet=True))
    assert [stage.name for stage in done.stages] == ["answer"]
    assert (done.exit_code, done.is_complete) == (75, False)
    assert call(capsys, "run", "judged.yaml", "-q").code == 0


def test_commands_that_read_a_run_take_the_directory_of_a_pipeline(pipeline: Path, capsys: Any) -> None:
    """What is about a result is about the last stage; what is about progress and failures, about each."""
    done = call(capsys, "run", "judged.yaml", "-q", "-o", "out", "--json")
    answer, judge, keep = (stage["directory"] for stage in json.loads(done.out)["stages"])
    told = call(capsys, "status", "out").out.splitlines()
    assert [line.split(",")[0] for line in told] == [
        "out  complete",
        "answer  complete 8/8 (100%)",
        "judge   complete 8/8 (100%)",
        "keep    complete 8/8 (100%)",
    ]
    as_json = json.loads(call(capsys, "status", "out", "--json").out)
    assert [(one["stage"], one["state"], one["directory"]) for one in as_json["stages"]] == [
        ("answer", "complete", answer), ("judge", "complete", judge), ("keep", "complete", keep)
    ]  # fmt: skip
    to_turns = ("--to", "conversations")
    assert call(capsys, "export", "out", *to_turns).out == call(capsys, "export", keep, *to_turns).out
    of_all, of_keep = call(capsys, "failed", "out", "--json").out, call(capsys, "failed", keep, "--json").out
    assert of_keep == of_all.replace('"stage": "keep", ', "")
    failed = call(capsys, "failed", "out").err
    assert f"{answer}: no sample has failed\n{judge}: no sample has failed\n" in failed
    call(capsys, "select", "out", "--limit", "1", "-o", "one")
    assert len(read(Path("one"))) == 1
    mixed = call(capsys, "run", "out", "--engine", "scripted", "-q")
    assert (mixed.code, "out: holds runs" in mixed.err) == (2, True)


def test_plan_shows_the_stages_and_validate_their_faults(pipeline: Path, capsys: Any) -> None:
    more = "  - name: again\n    input: {prompt_template: judge.j2}\n    accept: response != ''\n"
    pipeline.write_text(FILE + more + "    engine: {max_num_seqs: 2}\n    system: [none, 'Be brief.']\n")
    planned = call(capsys, "plan", "judged.yaml")
    assert planned.code == 0, planned.err
    assert planned.out.splitlines()[:6] == [
        "judged: 4 stages; what later ones have depends on those before",
        "answer  4 rows, 8 samples, loads its engines",
        "judge   reads answer, up to 8 samples, keeps the engines",
        "keep    reads judge, up to 4 samples, keeps at most 4",
        "again   reads keep, up to 8 samples of up to 64 answers, loads its engines",
        "",
    ]
    told = json.loads(call(capsys, "plan", "judged.yaml", "--json").out)
    assert [stage["most_samples"] for stage in told["stages"]] == [8, 8, 4, 8]
    assert not Path("outputs").exists()
    assert call(capsys, "validate", "judged.yaml").out == (
        "judged.yaml: 4 stages, no faults in them or in 4 rows of the first\n"
    )
    tried = json.loads(call(capsys, "run", "judged.yaml", "--dry-run", "--json").out)
    # What is free on the disk changes under our feet.
    tried["first"]["disk"]["free_bytes"] = told["first"]["disk"]["free_bytes"]
    assert tried == told
    done = json.loads(call(capsys, "run", "judged.yaml", "--json").out)
    assert told["first"]["directory"] == done["stages"][0]["directory"]
    pipeline.write_text(FILE.replace("topic != 'z'", "tropic != 'z'"))
    for command in ("plan", "validate"):
        wrong = call(capsys, command, "judged.yaml")
        assert (wrong.code, "judged.yaml:12:14: where: " in wrong.err) == (2, True), wrong.err


def test_status_shows_how_far_a_pipeline_is_and_lists_it(pipeline: Path, capsys: Any) -> None:
    pipeline.write_text(FILE.replace("num_samples: 2", "num_samples: 2\n    engine: {fail_every: 3}"))
    assert call(capsys, "run", "judged.yaml", "-q", "--set", "max_failures=0").code == 3
    (root,) = Path("outputs").iterdir()
    told = call(capsys, "status", str(root)).out.splitlines()
    assert told[0] == f"{root.name}  incomplete, stages answer: complete; judge, keep: not begun"
    assert told[1] == "answer  complete 8/8 (100%), 3 failed"
    assert told[2:4] == ["judge   not begun", "keep    not begun"]
    assert f"next      synthia-batch failed {root}/stages/answer-" in told[-1]
    assert call(capsys, "status").out.startswith(f"{root}  incomplete, stages answer: complete; judge, keep")
    early = call(capsys, "export", str(root), "--to", "alpaca")
    assert early.code == 2
    assert "has not come to its last stage, keep; run it again, or name the run of a stage: " in early.err
    lock = RunLock(RunDir(root), datetime.now().astimezone())
    with lock:
        assert json.loads(call(capsys, "status", str(root), "--json").out)["state"] == "running"
        busy = call(capsys, "run", "judged.yaml", "-q")
        assert (busy.code, f"{root} is in use by pid {os.getpid()}" in busy.err) == (4, True)


def test_retry_makes_the_first_failed_stage_again_and_says_what_is_behind_it(
    pipeline: Path, capsys: Any
) -> None:
    failing = "    num_samples: 2\n    engine: {fail_every: 3, fail_while_missing: mended}\n"
    Path("judged.yaml").write_text(FILE.replace("    num_samples: 2\n", failing))
    assert call(capsys, "run", "judged.yaml", "-q", "-o", "out").code == 0
    assert call(capsys, "run", "judged.yaml", "-q", "-o", "out").code == 0
    stuck = call(capsys, "retry", "out")
    assert (stuck.code, "retried 3 failed samples" in stuck.err) == (0, True)
    assert "run the pipeline again" not in stuck.err
    assert call(capsys, "status", "out").out.startswith("out  complete")
    Path("mended").touch()
    done = call(capsys, "retry", "out")
    assert done.code == 0, done.err
    assert "retried 3 failed samples" in done.err
    assert "run the pipeline again: what is behind this stage" in done.err
    told = call(capsys, "status", "out").out.splitlines()
    assert told[0] == "out  incomplete, stages answer: complete; judge, keep: outdated"
    assert [line.partition("complete")[0].split() for line in told[1:4]] == [
        ["answer"],
        ["judge", *["outdated:", "a", "stage", "before", "it", "has", "changed;"]],
        ["keep", *["outdated:", "a", "stage", "before", "it", "has", "changed;"]],
    ]
    for command in (
        ("export", "out", "--to", "alpaca"),
        ("select", "out", "--limit", "1"),
    ):
        old = call(capsys, *command)
        assert (old.code, "the pipeline has changed before its last stage, keep; run it" in old.err) == (
            2,
            True,
        )
    assert (
        json.loads(call(capsys, "run", "judged.yaml", "-q", "-o", "out", "--json").out)["stages"][1][
            "samples"
        ]
        == 8
    )
    nothing = call(capsys, "retry", "out")
    assert (nothing.code, "there are no samples failed; nothing was changed" in nothing.err) == (0, True)


def test_failed_samples_of_an_outdated_stage_are_not_to_be_retried(pipeline: Path, capsys: Any) -> None:
    failing = "    num_samples: 2\n    engine: {fail_every: 3, fail_while_missing: mended}\n"
    text = FILE.replace("    num_samples: 2\n", failing)
    pipeline.write_text(text.replace("  - name: keep", "    engine: {fail_every: 2}\n  - name: keep"))
    assert call(capsys, "run", "judged.yaml", "-o", "out", "-q").code == 0
    judge = next(Path("out/stages").glob("judge-*"))
    assert f"synthia-batch retry {judge}" in call(capsys, "failed", "out").err
    Path("mended").touch()
    assert call(capsys, "retry", "out", "-q").code == 0
    told = call(capsys, "failed", "out").err
    assert "a stage before it has changed: run the pipeline again, it makes this one anew" in told
    assert f"retry {judge}" not in told


def test_what_is_declared_otherwise_is_not_told_as_made(pipeline: Path, capsys: Any) -> None:
    assert call(capsys, "run", "judged.yaml", "-q", "-o", "out").code == 0
    pipeline.write_text(FILE.replace("topic != 'z'", "topic == 'nothing'"))
    assert call(capsys, "run", "judged.yaml", "-q", "-o", "out").code == 3
    stages = json.loads(call(capsys, "status", "out", "--json").out)["stages"]
    assert [stage["state"] for stage in stages] == ["complete", "complete", "not begun"]
    assert call(capsys, "export", "out", "--to", "alpaca").code == 2
    pipeline.write_text(FILE)
    assert call(capsys, "run", "judged.yaml", "-q", "-o", "out").code == 0
    assert call(capsys, "export", "out", "--to", "alpaca").code == 0


def test_no_run_is_begun_in_the_directory_of_a_pipeline(pipeline: Path, capsys: Any) -> None:
    done = json.loads(call(capsys, "run", "judged.yaml", "-q", "-o", "out", "--json").out)
    scripted = ("--engine", "scripted", "--pool", "local", "-q")
    for command in (
        ("run", "q.jsonl", *scripted),
        ("select", done["stages"][0]["directory"], "--limit", "1"),
    ):
        refused = call(capsys, *command, "-o", "out")
        assert (refused.code, "expected a run or an empty directory, got a pipeline's" in refused.err) == (
            2,
            True,
        )
    assert sorted(path.name for path in Path("out").iterdir()) == [".synthia", "pipeline.json", "stages"]


def test_a_stage_is_not_retried_while_the_pipeline_is_played(pipeline: Path, capsys: Any) -> None:
    failing = "    num_samples: 2\n    engine: {fail_every: 3}\n"
    Path("judged.yaml").write_text(FILE.replace("    num_samples: 2\n", failing))
    done = json.loads(call(capsys, "run", "judged.yaml", "-q", "-o", "out", "--json").out)
    with RunLock(RunDir(Path("out")), datetime.now().astimezone()):
        for place in ("out", done["stages"][0]["directory"]):
            busy = call(capsys, "retry", place, "-q")
            assert (busy.code, "out is in use by pid" in busy.err) == (4, True)


@pytest.mark.parametrize(
    ("accept", "told"),
    [
        (
            "answer.respons != ''",
            "judged.yaml:10:13: accept: answer.respons != '': answer has no respons;",
        ),
        ("topik == 'x'", "there is no topik; did you mean topic?"),
        ("answer.json.score > 1 or response != ''", None),
    ],
)
def test_what_a_later_stage_accepts_is_checked_before_anything_starts(
    pipeline: Path, capsys: Any, accept: str, told: str | None
) -> None:
    asks = "input: {prompt_template: judge.j2}"
    pipeline.write_text(FILE.replace(asks, f'{asks}\n    accept: "{accept}"'))
    done = call(capsys, "run", "judged.yaml", "-q", "-o", "out")
    assert (done.code, Path("out").exists()) == ((2, False) if told else (0, True)), done.err
    assert (told or "") in done.err


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
    assert "samples failed, and --max-failures allows 0" in done.err
    told = call(capsys, "run", "judged.yaml", "-o", "out", "--json")
    assert [stage["state"] for stage in json.loads(told.out)["stages"]] == ["complete", "too_many_failures"]


def test_a_selection_of_nothing_ends_with_3_and_says_what_each_step_dropped(
    pipeline: Path, capsys: Any
) -> None:
    Path("judged.yaml").write_text(FILE.replace("topic != 'z'", "topic == 'none'"))
    done = call(capsys, "run", "judged.yaml", "-o", "out")
    assert done.code == 3
    assert "none of its 8 samples is kept: where 8" in done.err
    assert not list(Path("out/stages").glob("keep-*"))


WRONG = {
    "a misspelt stage": ("best: judge.", "best: judg.", "judged.yaml:13:13: best: judg.completion_tokens: "
                         "there is no judg; did you mean judge?"),
    "a misspelt column": ("answer.finish_reason", "answer.finish_reson", "did you mean finish_reason?"),
    "a misspelt kept column": ("topic != 'z'", "topik != 'z'", "there is no topik; did you mean topic?"),
    "a misspelt key": ("best:", "bets:", "judged.yaml:13:7: bets: unknown key"),
    "a misspelt key of a job": ("num_samples", "num_sample", "judged.yaml:7:5: num_sample: unknown key"),
    "an unknown stage": ("    select:", "    input: {stage: jugde}\n    select:",
                         "judged.yaml:11:20: input.stage: there is no stage jugde before this one"),
    "a misspelt step": ("best:", "comibne:", "comibne: unknown key. Did you mean 'combine'?"),
    "two of a name": ("name: keep", "name: judge", "two stages are named judge"),
    "no name": ("- name: keep\n    select:", "- select:", "a stage needs a name of letters, digits and _"),
    "no input": ("path: q.jsonl, ", "", "the first stage needs an input"),
    "an input that is no section": ("{prompt_template: judge.j2}", "judge.j2",
                                    "judged.yaml:9:12: input is a section"),
    "a stage and a path": ("{prompt_template: judge.j2}", "{stage: answer, path: q.jsonl}",
                           "input names a stage and a path; name one"),
    "an output of a stage": ("    num_samples", "    output: mine\n    num_samples",
                             "judged.yaml:7:13: a stage has no output of its own"),
    "a selection with a key of a job": ("    select:", "    num_samples: 3\n    select:",
                                        "judged.yaml:11:5: a stage that selects generates nothing"),
    "a selection with a key of an input": ("    select:", "    input: {limit: 3}\n    select:",
                                           "it has no input.limit"),
    "a selection of a path": ("    select:", "    input: {path: q.jsonl}\n    select:",
                              "a stage that selects reads a stage before it, not a path"),
    "a selection that is no section": (FILE[FILE.index("    select:") :], "    select: topic\n",
                                       "judged.yaml:11:13: select is a section"),
    "a step without effect": ("best: judge.completion_tokens", "top: 2", "top belongs to best"),
    "an empty selection": (FILE[FILE.index("    select:") :], "    select: {}\n", "nothing is selected"),
    "no stages": (FILE[FILE.index("stages:") :], "stages: []\n", "judged.yaml:4:9: stages is a list"),
    "nothing to ask": ("    input: {prompt_template: judge.j2}", "    num_samples: 1",
                       "judged.yaml:8:5: say what is asked of the samples"),
    "a template that is not there": ("judge.j2", "jugde.j2", "jugde.j2: cannot be read: No such file"),
    "a kept column that is not there": ("{prompt_template: judge.j2}",
                                        "{prompt_template: judge.j2, keep_columns: [topik]}",
                                        "there is no topik; did you mean topic?"),
    "a kept column of the stage's name": ("name: judge\n", "name: topic\n", "a kept column is named topic"),
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


COMBINE = "      combine: {score: {mean: judge.json.score}}\n"
AGAINST = "      decontaminate: {against: q.jsonl, column: prompt, on: topic}\n"
WRONG_STEPS = {
    "a value behind it": (COMBINE, ("topic != 'z'", "scor > 1"), "judged.yaml:13:14: where: scor > 1 and"),
    "a name in a value": (COMBINE, ("judge.json", "judg.json"),
                          "judged.yaml:12:31: combine.score.mean: judg.json.score: there is no judg; did"),
    "a way to combine": (COMBINE, ("mean", "meen"),
                         "judged.yaml:12:25: combine.score.meen: unknown key. Did you mean 'mean'?"),
    "the name of a column": (COMBINE, ("score:", "topic:"), "combine.topic: there is a column topic already"),
    "a run to combine by": (COMBINE, ("{score", "{per: anser, score"),
                            "judged.yaml:12:22: combine.per: there is no run anser; there are"),
    "a benchmark": (AGAINST, ("q.jsonl, c", "b.jsonl, c"),
                    "judged.yaml:12:32: decontaminate.against: b.jsonl: "),
    "a column of a benchmark": (AGAINST, ("column: prompt", "column: promt"),
                                "judged.yaml:12:49: decontaminate.column: q.jsonl has no column promt; did"),
    "no column of a benchmark": (AGAINST, ("column: prompt, ", ""),
                                 "decontaminate.column: not set, and has no default"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG_STEPS)
def test_a_wrong_step_is_refused_with_its_place_before_anything_starts(
    pipeline: Path, capsys: Any, what: str
) -> None:
    added, (old, new), said = WRONG_STEPS[what]
    text = FILE.replace("      where:", f"{added}      where:")
    assert text.count(old) == 1
    pipeline.write_text(text.replace(old, new))
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
        (("run", "judged.yaml", "-n", "3"), "flag: num_samples: each stage of a pipeline says its own"),
        (("run", "judged.yaml", "q.jsonl"), "flag: input: each stage of a pipeline says its own"),
        (("run", "judged.yaml", "-o", "s3://b/x"), "a pipeline's output is a directory on this machine"),
        (("plan", "judged.yaml", "-n", "3"), "flag: num_samples: each stage of a pipeline says its own"),
    ],
)
def test_what_a_pipeline_does_not_take_is_refused(
    pipeline: Path, capsys: Any, arguments: tuple[str, ...], said: str
) -> None:
    done = call(capsys, *arguments)
    assert done.code == 2
    assert said in done.err
    assert not Path("outputs").exists()


def test_the_environment_sets_no_more_than_flags(
    pipeline: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNTHIA_BATCH_INPUT__LIMIT", "2")
    done = call(capsys, "run", "judged.yaml")
    assert done.code == 2
    assert "environment SYNTHIA_BATCH_INPUT__LIMIT: input: each stage of a pipeline says its own" in done.err


def test_a_place_that_cannot_be_a_pipelines_is_refused_before_anything_starts(
    pipeline: Path, capsys: Any
) -> None:
    Path("file").touch()
    Path("other").mkdir()
    Path("other/notes.txt").touch()
    for output, said in (("file", "expected a directory, got a file"), ("other", "got other files")):
        done = call(capsys, "run", "judged.yaml", "-o", output)
        assert done.code == 2
        assert said in done.err
    assert [path.name for path in Path("other").iterdir()] == ["notes.txt"]


def test_a_stage_reads_what_yaml_means_as_a_job_does(pipeline: Path, capsys: Any) -> None:
    more = "    sampling:\n    model: {revision: 1234}\n    num_samples: 2"
    text = FILE.replace("    num_samples: 2", more)
    Path("judged.yaml").write_text(text.replace("    model: {revision: 1234}\n", ""))
    assert call(capsys, "run", "judged.yaml", "-q").code == 0
    layer = read_job_file(write(text))
    assert layer.values["stages"][0]["model"]["revision"] == "1234"


def write(text: str) -> Path:
    path = Path("other.yaml")
    path.write_text(text)
    return path
