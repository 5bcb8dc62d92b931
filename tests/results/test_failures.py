"""Failed samples: told as they come, listed, counted, and reasons to end early."""

import json
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import Command, command_of, make_environment, read_bytes_of_data, write_jsonl
from inside import call

from synthia_batch.core.formatting import shorten
from synthia_batch.core.log import PER_SAMPLE
from synthia_batch.core.types import Failed, Finished, Record
from synthia_batch.results.read.failed_rows import FailedRows
from synthia_batch.results.read.failures import advise_on_failures, find_reasons, list_failures
from synthia_batch.results.read.status import read_status
from synthia_batch.runner.generate import FailureLog
from synthia_batch.scheduler.events import OutcomesRecorded

SCRIPTED = ("--engine", "scripted", "--pool", "local", "--set", "model.max_model_len=900")
LONG = (3, 40)


def write_questions(path: Path, count: int) -> Path:
    """Write questions to `path`, of which those of LONG fit no engine, and a blank line before the last."""
    questions = [f"What is {n} squared?" + " long" * 300 * (n in LONG) for n in range(count)]
    write_jsonl(path, [{"question": question, "name": f"row-{n}"} for n, question in enumerate(questions)])
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-1], "", lines[-1], ""]))
    return path


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("failures")
    source = write_questions(home / "q.jsonl", 61)
    command = command_of(
        "run", source, *SCRIPTED, "-n", "2", "-s", "synthia", "-s", "none", "--id-column", "name", "-q",
        "--set", "engine.fail_every=60", "-o", home / "out",
    )  # fmt: skip
    subprocess.run(command, check=True, cwd=home, env=make_environment(), capture_output=True)
    return home


def test_a_complete_run_lists_what_failed_with_its_place(
    complete: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(complete)
    answer = call(capsys, "failed", "out")
    assert answer.code == 0
    lines = answer.out.splitlines()
    assert lines[0] == "q.jsonl:1: scripted_failure: failed as scripted (id row-0, sample 0)"
    assert lines[-1] == "q.jsonl:62: scripted_failure: failed as scripted (id row-60, sample 0)"
    assert len([line for line in lines if line.startswith("q.jsonl:4: prompt_too_long: the prompt has")]) == 4
    assert answer.err.splitlines() == [
        "failed: 13, by code:",
        "  prompt_too_long                  8",
        "  scripted_failure                 5",
        "fix the cause, then retry them: synthia-batch retry out --code scripted_failure",
        "too long in this run, whose settings stay as they are; run those rows, without their ids, by "
        "themselves: synthia-batch run out/failed --set engine.kind=scripted --set engine.fail_every=60 "
        "--set pool.kind=local --set model.max_model_len=TOKENS",
    ]


def test_one_code_alone_and_as_json(complete: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(complete)
    answer = call(capsys, "failed", "out", "--code", "scripted_failure", "--json")
    samples = [json.loads(line) for line in answer.out.splitlines()]
    assert [sample["row_index"] for sample in samples] == [0, 15, 30, 45, 60]
    assert samples[4] == {
        "code": "scripted_failure",
        "message": "failed as scripted",
        "file": "q.jsonl",
        "line": 62,
        "id": "row-60",
        "row_index": 60,
        "sample_index": 0,
    }
    assert "synthia-batch retry out --code scripted_failure" in answer.err
    none = call(capsys, "failed", "out", "--code", "engine_crash")
    assert (none.code, none.out) == (0, "")
    assert "none with the code engine_crash" in none.err


def test_a_run_without_failures_says_so(tmp_path: Path, synthia: Command) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"question": "What is two squared?"}])
    assert synthia("run", source, "--engine", "scripted", "--pool", "local", "-o", "out").returncode == 0
    done = synthia("failed", "out")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "out: no sample has failed\n")


def test_a_reader_that_has_seen_enough_is_no_error(complete: Path) -> None:
    command = " ".join(command_of("failed", "out"))
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | true; {command} | head -1"],
        cwd=complete,
        env=make_environment(PYTHONUNBUFFERED="1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Broken pipe" not in done.stderr
    assert done.stdout.startswith("q.jsonl:1: ")


def interrupt(home: Path, *flags: str) -> None:
    """Have a run be killed once it has failed samples in its journal."""
    source = write_questions(home / "q.jsonl", 400)
    command = command_of("run", source, *SCRIPTED, "--set", "engine.fail_every=7", *flags, "-q", "-o", "out")
    slow = ("--set", "engine.latency_ms=200", "--set", "engine.max_num_seqs=4", "--id-column", "name")
    with subprocess.Popen([*command, *slow], cwd=home, env=make_environment()) as run:
        while not any(b'"failed"' in path.read_bytes() for path in home.glob("out/.synthia/journal/*.wal")):
            assert run.poll() is None
            time.sleep(0.02)
        while_running = list(list_failures(home / "out"))
        assert run.poll() is None
        assert while_running
        run.send_signal(signal.SIGKILL)


def test_an_interrupted_run_lists_the_same_from_its_journals(tmp_path: Path, synthia: Command) -> None:
    interrupt(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    early = [json.loads(line) for line in synthia("failed", "out", "--json").stdout.splitlines()]
    assert early
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    status = read_status(tmp_path / "out")
    assert status.state == "interrupted"
    assert sum(status.failures.values()) == status.failed == len(early)
    done = synthia(
        "run", "q.jsonl", *SCRIPTED, "--set", "engine.fail_every=7", "--id-column", "name", "-o", "out"
    )
    assert done.returncode == 0, done.stderr
    late = [json.loads(line) for line in synthia("failed", "out", "--json").stdout.splitlines()]
    assert all(sample in late for sample in early), "the same words from a journal and from a part"


def test_where_the_input_has_gone_rows_are_named_by_number(tmp_path: Path, synthia: Command) -> None:
    interrupt(tmp_path)
    (tmp_path / "q.jsonl").unlink()
    lines = synthia("failed", "out").stdout.splitlines()
    assert lines
    assert all(line.startswith("q.jsonl: row_index ") for line in lines)
    (tmp_path / "out/.synthia/job.json").unlink()
    assert synthia("failed", "out").stdout.splitlines() == lines


def test_hostile_ids_and_messages_stay_on_their_line() -> None:
    assert shorten("a\x1b[31m\nb\u202ec") == "a\\x1b[31m b\\u202ec"
    assert len(shorten("x" * 10_000)) == 160


def test_the_first_few_of_each_code_are_told_with_their_place_then_their_number(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(PER_SAMPLE)
    log = FailureLog(lambda ordinal: f"q.jsonl:{ordinal}")
    records: list[Record] = [Failed(ordinal=n, code="x", message="why") for n in range(250)]
    cut_off = Finished(
        ordinal=999,
        response="",
        reasoning=None,
        finish_reason="length",
        prompt_tokens=1,
        completion_tokens=64,
    )
    log.observe(OutcomesRecorded(records=records[:5]))
    log.observe(OutcomesRecorded(records=[*records[5:], cut_off]))
    assert caplog.messages == [
        "q.jsonl:0: x: why",
        "q.jsonl:1: x: why",
        "q.jsonl:2: x: why; from here on they are counted",
        "x: 10 samples so far",
        "x: 100 samples so far",
        "q.jsonl:999: cut off: the answer ends at 64 tokens",
    ]


LIMITED = (*SCRIPTED, "--set", "engine.fail_every=4", "--set", "engine.max_num_seqs=4")


@pytest.mark.parametrize("limit", ["5", "1%"])
def test_a_hopeless_run_ends_early_with_its_reasons(tmp_path: Path, synthia: Command, limit: str) -> None:
    write_questions(tmp_path / "q.jsonl", 500)
    command = ("run", "q.jsonl", *LIMITED, "--set", "engine.latency_ms=50", "-o", "out")
    done = synthia(*command, "--max-failures", limit, "--json")
    assert done.returncode == 3, done.stderr
    told = json.loads(done.stdout)
    assert told["state"] == "too_many_failures"
    assert told["failed"] > 5
    assert told["finished"] < 400
    lines = done.stderr.splitlines()
    assert f"{told['failed']} samples failed, and --max-failures allows 5" in lines
    reason = next(line for line in lines if "scripted_failure, such as" in line)
    assert "q.jsonl:" in reason
    assert "failed as scripted" in reason
    assert "fix the cause, then retry them: synthia-batch retry out --code scripted_failure" in lines
    status = read_status(tmp_path / "out")
    assert (status.finished, status.failed) == (told["finished"], told["failed"]), "all that ended is kept"
    assert status.next == f"synthia-batch failed {tmp_path / 'out'}"

    again = synthia(*command, "--max-failures", limit, "-v")
    assert again.returncode == 3
    assert "scripted_failure, such as" in again.stderr
    assert "worker ready" not in again.stderr, "no engine was loaded"
    assert json.loads(synthia("status", "out", "--json").stdout)["finished"] == told["finished"]


def test_a_higher_limit_goes_on_and_a_complete_run_is_judged_as_well(
    tmp_path: Path, synthia: Command
) -> None:
    write_questions(tmp_path / "q.jsonl", 100)
    assert synthia("run", "q.jsonl", *LIMITED, "-o", "out", "--max-failures", "2").returncode == 3
    assert synthia("run", "q.jsonl", *LIMITED, "-o", "out", "--max-failures", "50%").returncode == 0
    over = synthia("run", "q.jsonl", *LIMITED, "-o", "out", "--max-failures", "10")
    assert over.returncode == 3
    assert "already complete: 74 of 100 samples finished, 26 failed" in over.stderr
    assert "26 samples failed, and --max-failures allows 10" in over.stderr
    whole = synthia("run", "q.jsonl", *LIMITED, "-o", "whole")
    assert whole.returncode == 0
    assert read_bytes_of_data(tmp_path / "out") == read_bytes_of_data(tmp_path / "whole")
    assert [reason.code for reason in find_reasons(tmp_path / "out")] == [
        "scripted_failure",
        "prompt_too_long",
    ]


def test_retry_after_failed_makes_them_again_whatever_ended_the_run(tmp_path: Path, synthia: Command) -> None:
    write_questions(tmp_path / "q.jsonl", 100)
    flags = (*LIMITED, "--set", "engine.fail_while_missing=mended", "-o", "out", "--max-failures", "3")
    assert synthia("run", "q.jsonl", *flags).returncode == 3
    (tmp_path / "mended").touch()
    done = synthia("retry", "out")
    assert done.returncode == 0, done.stderr
    assert "not complete: " in done.stderr, "only the failed samples are made"
    rest = synthia("run", "q.jsonl", *flags)
    assert rest.returncode == 0, rest.stderr
    assert "complete: 98 of 100 samples finished, 2 failed" in rest.stderr
    assert "list them with: synthia-batch failed out" in rest.stderr


def test_the_advice_is_a_way_that_can_help() -> None:
    assert advise_on_failures("out", ["engine_crash"]) == [
        "fix the cause, then retry them: synthia-batch retry out --code engine_crash"
    ]
    (too_long,) = advise_on_failures("my out/", ["prompt_too_long"])
    assert too_long.endswith("synthia-batch run 'my out/failed' --set model.max_model_len=TOKENS")
    (bad,) = advise_on_failures("out", ["bad_row", "prompt_empty"])
    assert "in a file of their own" in bad
    (flagged,) = advise_on_failures("out", ["flagged_empty"])
    assert flagged.endswith("synthia-batch run out/failed --set seed=1")
    settings = {"model.name": "demo", "seed": 7, "sampling.stop": ["a b"]}
    (flagged,) = advise_on_failures("out", ["flagged_empty"], FailedRows(settings=settings))
    assert flagged.endswith("out/failed --set model.name=demo --set 'sampling.stop=[\"a b\"]' --set seed=1")
    several = advise_on_failures("out", ["engine_error", "prompt_too_long", "engine_crash"])
    assert several[0] == "fix the cause, then retry them: synthia-batch retry out"
    assert len(several) == 2


LONG_TEXT = "long " * 60


@pytest.mark.parametrize(
    ("row", "flags", "lacking"),
    [
        ({"turns": ["a", LONG_TEXT, "c"]}, (), "the later turns"),
        ({"prompt": LONG_TEXT, "t": []}, ("--tools-column", "t"), "the tools"),
        ({"prompt": LONG_TEXT, "s": {"top_k": 3}}, ("--sampling-column", "s"), "the rows' own sampling"),
    ],
)
def test_what_is_not_in_the_failed_rows_is_asked_by_the_whole_job(
    row: dict[str, Any], flags: tuple[str, ...], lacking: str, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("q.jsonl"), [row])
    job = ("q.jsonl", "--engine", "scripted", "--pool", "local", "-q", *flags)
    assert call(capsys, "run", *job, "--set", "model.max_model_len=200", "-o", "out").code == 3
    (advice,) = [line for line in call(capsys, "failed", "out").err.splitlines() if "too long" in line]
    assert f"failed/ does not have {lacking}" in advice
    assert "run the whole job into another directory (-o) with --set model.max_model_len=TOKENS" in advice
    assert call(capsys, "run", *job, "--set", "model.max_model_len=4K", "-o", "again").code == 0


CONTINUED = [{"role": "user", "content": LONG_TEXT}, {"role": "assistant", "content": "I say"}]


@pytest.mark.parametrize(
    ("rows", "flags", "left"),
    [
        ([{"prompt": ""}, {"prompt": LONG_TEXT}], ("--on-bad-row", "fail"), 1),
        ([{"messages": CONTINUED}], ("--final-assistant", "continue"), 0),
        (
            [{"prompt": LONG_TEXT, "s": "Be brief.", "k": 1}],
            ("--system-column", "s", "--keep-columns", "k"),
            0,
        ),
    ],
)
def test_the_failed_rows_are_read_as_they_were_asked(
    rows: list[dict[str, Any]],
    flags: tuple[str, ...],
    left: int,
    tmp_path: Path,
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("q.jsonl"), rows)
    job = ("q.jsonl", "--engine", "scripted", "--pool", "local", "-q", *flags)
    assert call(capsys, "run", *job, "--set", "model.max_model_len=200", "-o", "out").code == 3
    (advice,) = [line for line in call(capsys, "failed", "out").err.splitlines() if "too long" in line]
    assert ("without the kept columns k," in advice) == ("--keep-columns" in flags)
    words = shlex.split(advice.partition("by themselves: ")[2].replace("TOKENS", "4K"))
    done = call(capsys, *words[1:], "-o", "rest")
    assert done.code == 0, done.err
    assert json.loads(call(capsys, "status", "rest", "--json").out)["failed"] == left
    (row,) = pq.read_table("rest/data").to_pylist()
    call(capsys, "run", *job, "--set", "model.max_model_len=4K", "-o", "whole")
    (same,) = pq.read_table("whole/data").to_pylist()
    assert row["messages"][:-1] == same["messages"][:-1]


def test_rows_that_were_too_long_are_run_by_themselves_as_advised(synthia: Command, tmp_path: Path) -> None:
    rows = [{"name": "short one", "question": "short"}, {"name": "long one", "question": "long " * 60}]
    write_jsonl(tmp_path / "q.jsonl", rows)
    job = ("--engine", "scripted", "--pool", "local", "--preset", "synthia-7b", "--top-k", "7")
    own = ("-s", "text:Answer in French.", "--id-column", "name", "--set", "model.max_model_len=200")
    assert synthia("run", "q.jsonl", *job, *own, "-o", "out").returncode == 0
    told = synthia("failed", "out")
    assert "retry" not in told.stderr
    advised = told.stderr.splitlines()[-1].partition("by themselves: ")[2]
    words = shlex.split(advised.replace("TOKENS", "4K"))
    assert words[:3] == ["synthia-batch", "run", "out/failed"]
    done = synthia(*words[1:], "-o", "rest")
    assert "complete: 1 of 1 samples finished" in done.stderr
    (row,) = pq.read_table(tmp_path / "rest/data").to_pylist()
    assert (row["id"], row["messages"][0]["content"]) == ("long one", "Answer in French.")
    plan = json.loads((tmp_path / "rest/.synthia/plan.json").read_text())
    assert plan["identity"]["sampling"]["top_k"] == 7
