"""The commands as a user types them, on the scripted engine."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import (
    ROOT,
    Command,
    command_of,
    make_environment,
    read_bytes_of_data,
    read_call_log,
    write_jsonl,
)

from synthia_batch.results.read.status import read_status

QUESTIONS = ROOT / "inputs" / "questions.parquet"
SCRIPTED = ("--engine", "scripted", "--pool", "local")


def write_questions(path: Path, count: int) -> Path:
    return write_jsonl(path, [{"question": f"What is {n} squared?"} for n in range(count)])


def test_a_job_is_made_and_then_said_to_be_complete(synthia: Command, tmp_path: Path) -> None:
    first = synthia("run", QUESTIONS, *SCRIPTED)
    assert first.returncode == 0, first.stderr
    directory = tmp_path / first.stdout.strip()
    table = pq.read_table(directory / "data")
    assert table.num_rows == pq.read_metadata(QUESTIONS).num_rows
    before = read_bytes_of_data(directory)
    again = synthia("run", QUESTIONS, *SCRIPTED)
    assert (again.returncode, again.stdout) == (0, first.stdout)
    assert "already complete" in again.stderr
    assert read_bytes_of_data(directory) == before


def test_output_has_the_columns_of_the_design_and_then_the_kept_ones(
    synthia: Command, tmp_path: Path
) -> None:
    done = synthia("run", QUESTIONS, *SCRIPTED, "--keep-columns", "topic", "--id-column", "id", "-o", "out")
    assert done.returncode == 0, done.stderr
    table = pq.read_table(tmp_path / "out" / "data")
    assert table.column_names == [
        "id", "row_index", "sample_index", "system", "messages", "response", "reasoning", "finish_reason",
        "prompt_tokens", "completion_tokens", "seed", "model", "topic",
    ]  # fmt: skip
    source = pq.read_table(QUESTIONS).to_pylist()
    rows = table.to_pylist()
    assert [row["id"] for row in rows] == [row["id"] for row in source]
    assert [row["topic"] for row in rows] == [row["topic"] for row in source]
    assert [row["row_index"] for row in rows] == list(range(len(source)))
    for row, question in zip(rows, source, strict=True):
        assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"]
        assert row["messages"][0]["content"] == question["question"]
        assert row["messages"][1]["content"] == row["response"]


def test_each_row_is_made_once_per_system_message_and_sample(synthia: Command, tmp_path: Path) -> None:
    done = synthia(
        "run",
        write_questions(tmp_path / "q.jsonl", 5),
        *SCRIPTED,
        "-n",
        "3",
        "-s",
        "synthia",
        "-s",
        "none",
        "-o",
        "out",
    )
    assert done.returncode == 0, done.stderr
    rows = pq.read_table(tmp_path / "out" / "data").to_pylist()
    keys = [(row["row_index"], row["system"], row["sample_index"]) for row in rows]
    assert keys == [(n, system, k) for n in range(5) for system in ("synthia", "none") for k in range(3)]
    assert len({row["seed"] for row in rows}) == 30
    assert len({row["response"] for row in rows}) == 30


def test_a_killed_run_resumes_without_making_a_finished_sample_again(
    synthia: Command, tmp_path: Path
) -> None:
    source = write_questions(tmp_path / "q.jsonl", 400)
    flags = ("--set", "engine.latency_ms=20", "--set", "engine.max_num_seqs=4")
    undisturbed = synthia("run", source, *SCRIPTED, *flags, "-o", "whole")
    assert undisturbed.returncode == 0, undisturbed.stderr

    log = tmp_path / "calls"
    command = command_of("run", source, *SCRIPTED, *flags, "--set", f"engine.call_log={log}", "-o", "killed")
    victim = subprocess.Popen(command, cwd=tmp_path, env=make_environment(), stderr=subprocess.DEVNULL)
    while len(read_call_log(log)) < 100:
        assert victim.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    victim.kill()
    victim.wait()
    status = json.loads(synthia("status", "killed", "--json").stdout)
    assert status["state"] == "interrupted"
    assert 0 < status["finished"] < 400
    resumed = synthia("run", source, *SCRIPTED, "--set", f"engine.call_log={log}", "-o", "killed")
    assert resumed.returncode == 0, resumed.stderr
    assert f"resuming killed: {status['finished']} of 400 samples are done" in resumed.stderr
    assert read_bytes_of_data(tmp_path / "killed") == read_bytes_of_data(tmp_path / "whole")
    # Only what the worker held at the kill was made twice: two batches, one made and not yet written.
    calls = read_call_log(log)
    assert set(calls) == set(range(400))
    assert len(calls) - 400 <= 8
    # The second attempt made exactly what the journal lacked.
    assert f'"made": {400 - status["finished"]}' in (tmp_path / "killed/.synthia/events.jsonl").read_text()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_drains_and_the_command_to_resume_is_printed(
    synthia: Command, tmp_path: Path, number: int, code: int
) -> None:
    source = write_questions(tmp_path / "q.jsonl", 300)
    log = tmp_path / "calls"
    arguments = ("run", source, *SCRIPTED, "--set", "engine.max_num_seqs=4", "-o", "out")
    slow = ("--set", "engine.latency_ms=50", "--set", f"engine.call_log={log}")
    child = subprocess.Popen(
        command_of(*arguments, *slow), cwd=tmp_path, env=make_environment(), stderr=subprocess.PIPE, text=True
    )
    while len(read_call_log(log)) < 20:
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(number)
    _, errors = child.communicate(timeout=30)
    assert child.returncode == code, errors
    assert "resume with: synthia-batch run" in errors
    finished = json.loads(synthia("status", "out", "--json").stdout)["finished"]
    assert finished >= len(set(read_call_log(log))), "what was made must be kept"
    resumed = synthia(*arguments, "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout)["made_now"] == 300 - finished


@pytest.mark.parametrize(
    "options",
    [
        pytest.param((), id="local"),
        pytest.param(("--pool", "ray", "--workers", "1"), id="ray", marks=pytest.mark.long),
    ],
)
def test_a_second_ctrl_c_stops_at_once_and_says_how_to_resume(
    synthia: Command, tmp_path: Path, options: tuple[str, ...]
) -> None:
    source = write_questions(tmp_path / "q.jsonl", 40)
    arguments = ("run", source, *SCRIPTED, *options, "--set", "engine.max_num_seqs=4", "-o", "out")
    child = subprocess.Popen(
        command_of(*arguments, "--set", "engine.latency_ms=2000"),
        cwd=tmp_path, env=make_environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stderr is not None
    journals = tmp_path / "out/.synthia/journal"
    # What an engine has made is on its way for a moment, and a second Ctrl-C waits for nothing.
    while sum(path.read_bytes().count(b'{"finished":') for path in journals.glob("*.wal")) < 4:
        assert child.poll() is None, f"ended before four samples were kept: {child.stderr.read()}"
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    told = ""
    while "Ctrl-C stops at once" not in told:
        line = child.stderr.readline()
        assert line, f"ended with {child.wait()} after Ctrl-C, having said: {told}"
        told += line
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130, errors
    assert "stopped at once; finished samples are kept, resume with: synthia-batch run" in errors
    assert "drained on" not in errors
    assert "Traceback" not in errors
    resumed = synthia(*arguments, "--json", "--pool", "local")
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout)["made_now"] <= 36


def test_stdout_has_the_result_alone(synthia: Command, tmp_path: Path) -> None:
    source = write_questions(tmp_path / "q.jsonl", 200)
    arguments = ("run", source, *SCRIPTED, "--set", "engine.max_num_seqs=2", "-o", "out")
    drained = synthia(*arguments, "--json", "--set", "engine.latency_ms=100", "--deadline", "1")
    assert drained.returncode == 75
    assert json.loads(drained.stdout)["state"] == "drained"
    assert "resume with: synthia-batch run" in drained.stderr
    complete = synthia(*arguments, "--json")
    assert json.loads(complete.stdout)["state"] == "complete"
    quiet = synthia(*arguments, "-q")
    assert quiet.stdout == "out\n"
    assert json.loads(synthia(*arguments, "-q", "--json").stdout)["made_now"] == 0


def test_verbose_tells_the_identity_and_the_workers(synthia: Command, tmp_path: Path) -> None:
    source = write_questions(tmp_path / "q.jsonl", 4)
    arguments = ("run", source, *SCRIPTED, "--workers", "1", "-o", "out")
    plain = synthia(*arguments, "--seed", "7", "-o", "plain")
    verbose = synthia(*arguments, "-v")
    for words in (
        "fingerprint ",
        "directory out",
        "sampling.temperature: 0.75",
        "worker 0",
        "engine scripted",
    ):
        assert words in verbose.stderr
        assert words not in plain.stderr
    assert verbose.stdout == "out\n"
    assert "worker ready" not in synthia(*arguments, "-v").stderr, "that was another attempt"


def test_a_bug_asks_to_be_reported(tmp_path: Path) -> None:
    probe = (
        "import sys; from synthia_batch.cli import app; from synthia_batch.results.read import status\n"
        "status.StatusReader = lambda directory: 1 / 0\n"
        "sys.argv = ['synthia-batch', 'status', '.']; app.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    first, second, *_ = done.stderr.splitlines()
    assert first.startswith("this is a bug in synthia-batch: please report it with the traceback below")
    assert second.startswith("Traceback")
    assert "ZeroDivisionError" in done.stderr


def test_a_deadline_drains_too(synthia: Command, tmp_path: Path) -> None:
    source = write_questions(tmp_path / "q.jsonl", 500)
    done = synthia(
        "run",
        source,
        *SCRIPTED,
        "--set",
        "engine.latency_ms=100",
        "--set",
        "engine.max_num_seqs=2",
        "--deadline",
        "2",
    )
    assert done.returncode == 75
    assert "drained on the deadline" in done.stderr


def test_another_job_in_the_same_directory_is_refused_field_by_field(
    synthia: Command, tmp_path: Path
) -> None:
    source = write_questions(tmp_path / "q.jsonl", 3)
    assert synthia("run", source, *SCRIPTED, "-o", "out").returncode == 0
    before = read_bytes_of_data(tmp_path / "out")
    other = synthia("run", source, *SCRIPTED, "-o", "out", "--seed", "7", "--temperature", "0")
    assert other.returncode == 4
    assert "seed: 0 before, 7 now" in other.stderr
    assert "sampling.temperature: 0.75 before, 0.0 now" in other.stderr
    source.write_text(source.read_text() + '{"question": "One more?"}\n')
    changed = synthia("run", source, *SCRIPTED, "-o", "out")
    assert changed.returncode == 4
    assert "input.digest" in changed.stderr
    assert read_bytes_of_data(tmp_path / "out") == before


def test_memory_and_speed_settings_are_not_identity(synthia: Command, tmp_path: Path) -> None:
    source = write_questions(tmp_path / "q.jsonl", 3)
    first = synthia("run", source, *SCRIPTED, "--set", "engine.max_num_seqs=1")
    second = synthia("run", source, *SCRIPTED, "--set", "engine.max_num_seqs=64", "--workers", "2")
    assert first.stdout == second.stdout
    assert "already complete" in second.stderr


def test_a_directory_with_other_files_is_left_alone(synthia: Command, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    done = synthia("run", QUESTIONS, *SCRIPTED, "-o", "mine")
    assert done.returncode == 2
    assert "expected a run or an empty directory, got other files" in done.stderr
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["thesis.txt"]


def test_failed_samples_go_to_failed_and_the_limit_decides_the_exit_code(
    synthia: Command, tmp_path: Path
) -> None:
    source = write_questions(tmp_path / "q.jsonl", 10)
    arguments = ("run", source, *SCRIPTED, "--set", "engine.fail_every=4", "-o", "out")
    allowed = synthia(*arguments)
    assert allowed.returncode == 0, allowed.stderr
    assert "7 of 10 samples finished, 3 failed" in allowed.stderr
    failed = pq.read_table(tmp_path / "out" / "failed").to_pylist()
    assert [(row["row_index"], row["code"], row["source_line"]) for row in failed] == [
        (0, "scripted_failure", 1), (4, "scripted_failure", 5), (8, "scripted_failure", 9),
    ]  # fmt: skip
    assert synthia(*arguments, "--max-failures", "3").returncode == 0
    assert synthia(*arguments, "--max-failures", "2").returncode == 3


def test_a_prompt_that_is_too_long_fails_alone(synthia: Command, tmp_path: Path) -> None:
    records = [{"prompt": "short"}, {"prompt": "long " * 200}, {"prompt": "short too"}]
    source = write_jsonl(tmp_path / "q.jsonl", records)
    done = synthia("run", source, *SCRIPTED, "-s", "none", "--set", "model.max_model_len=300", "-o", "out")
    assert done.returncode == 0, done.stderr
    (failed,) = pq.read_table(tmp_path / "out" / "failed").to_pylist()
    assert (failed["row_index"], failed["code"]) == (1, "prompt_too_long")
    assert pq.read_table(tmp_path / "out" / "data").num_rows == 2


def test_when_every_sample_fails_there_is_no_empty_data_file_and_no_success(
    synthia: Command, tmp_path: Path
) -> None:
    source = write_questions(tmp_path / "q.jsonl", 3)
    for _ in range(2):
        done = synthia("run", source, *SCRIPTED, "--set", "engine.fail_every=1", "-o", "out")
        assert done.returncode == 3, done.stderr
        assert list((tmp_path / "out" / "data").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere.jsonl",), "nowhere.jsonl"),
        (("q.jsonl", "--system", "synhtia"), "did you mean synthia"),
        (("q.jsonl", "--preset", "synthia-8b"), "did you mean synthia-7b"),
        (("q.jsonl", "--prompt-column", "qustion"), "question"),
        (("q.jsonl", "--set", "sampling.temprature=1"), "Did you mean 'temperature'?"),
        (("q.jsonl", "--set", "engine.latency=1"), "latency_ms"),
        (("q.jsonl", "--set", "engine.call_log=no/such/log"), "no directory no/such"),
        (("q.jsonl", "--temperature", "-1"), "sampling.temperature (flag)"),
        (("q.jsonl", "--system", "synthia", "--system", "synthia"), "name each system message once"),
        (("q.jsonl", "--system", "none", "--system-column", "question"), "set only one of the two"),
        (("q.jsonl", "--model", "./no-such-model"), "no such directory"),
        (("broken.yaml",), "broken.yaml:2"),
        (("q.jsonl", "--set", "sampling.repetition_penalty=.inf"), "sampling.repetition_penalty (flag)"),
        (("q.jsonl", "--set", "engine.foo=2024-01-01"), "engine.foo (flag)"),
        (("q.jsonl", "--stop", ""), "sampling.stop[0] (flag)"),
        (("q.jsonl", "--set", "system=@nowhere.txt"), "nowhere.txt cannot be read"),
        (("q.jsonl", "--prompt-column", os.fsdecode(b"\xff")), "input.prompt_column (flag)"),
        (("q.jsonl", "--set", os.fsdecode(b"model.dtype=\xff")), "model.dtype"),
        ((), "name an input file"),
    ],
)
def test_a_wrong_word_is_refused_with_a_hint(
    synthia: Command, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    write_questions(tmp_path / "q.jsonl", 1)
    (tmp_path / "broken.yaml").write_text("input: [\n")
    done = synthia("run", *arguments, *SCRIPTED)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "outputs").exists(), "nothing may be made of a job that is refused"


def test_every_fault_of_the_input_is_listed_before_anything_starts(synthia: Command, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_bytes(
        b'{"question": "fine"}\n{"question": 7}\n{"question"\n\xff\xfe\n{"question": "\\ud800"}\n'
    )
    done = synthia("run", "q.jsonl", *SCRIPTED)
    assert done.returncode == 2
    assert all(f"q.jsonl:{line}:" in done.stderr for line in (2, 3, 4, 5)), done.stderr
    assert not (tmp_path / "outputs").exists()


def test_plan_says_where_each_value_came_from(synthia: Command, tmp_path: Path) -> None:
    write_questions(tmp_path / "q.jsonl", 4)
    (tmp_path / "job.yaml").write_text(
        "input: {path: q.jsonl}\nsampling: {top_k: 7}\npreset: synthia-7b\nnum_samples: 2\n"
    )
    done = synthia(
        "plan", "job.yaml", *SCRIPTED, "--seed", "5", "--json", SYNTHIA_BATCH_SAMPLING__TOP_P="0.9"
    )
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    origins = {key: (entry["value"], entry["origin"]) for key, entry in plan["settings"].items()}
    assert origins["seed"] == (5, "flag")
    assert origins["sampling.top_p"] == (0.9, "environment SYNTHIA_BATCH_SAMPLING__TOP_P")
    assert origins["sampling.top_k"] == (7, "job.yaml:2")
    assert origins["sampling.max_tokens"] == (1024, "preset synthia-7b")
    assert origins["sampling.min_p"] == (0.0, "default")
    assert (plan["rows"], plan["samples"], plan["shards"]) == (4, 8, 1)
    assert plan["prompt_tokens"]["total"] > 0
    assert not (tmp_path / "outputs").exists()


def test_a_job_file_and_its_flags_are_the_same_job(synthia: Command, tmp_path: Path) -> None:
    write_questions(tmp_path / "q.jsonl", 2)
    (tmp_path / "q.yaml").write_text(
        "input: {path: q.jsonl}\nengine: {kind: scripted}\npool: {kind: local}\nsampling: {max_tokens: 9}\n"
    )
    by_file = synthia("run", "q.yaml")
    by_flags = synthia("run", "q.jsonl", *SCRIPTED, "--max-tokens", "9")
    assert by_file.returncode == 0, by_file.stderr
    assert by_file.stdout == by_flags.stdout
    assert "already complete" in by_flags.stderr


def test_validate_and_dry_run_make_nothing(synthia: Command, tmp_path: Path) -> None:
    write_questions(tmp_path / "q.jsonl", 2)
    assert "2 rows, no faults" in synthia("validate", "q.jsonl", *SCRIPTED).stdout
    assert "samples: 2" in synthia("run", "q.jsonl", *SCRIPTED, "--dry-run").stdout
    assert sorted(os.listdir(tmp_path)) == ["q.jsonl"]


@pytest.mark.parametrize("command", ["status", "verify", "retry"])
@pytest.mark.parametrize("name", [".", "q.jsonl", "nowhere"])
def test_what_is_no_run_is_a_usage_error(synthia: Command, tmp_path: Path, command: str, name: str) -> None:
    write_questions(tmp_path / "q.jsonl", 1)
    done = synthia(command, name)
    assert done.returncode == 2, done.stderr
    assert "not a run directory" in done.stderr


def test_a_file_cannot_be_the_run_directory(synthia: Command, tmp_path: Path) -> None:
    write_questions(tmp_path / "q.jsonl", 1)
    done = synthia("run", "q.jsonl", *SCRIPTED, "-v", "-o", "q.jsonl")
    assert done.returncode == 2, done.stderr
    assert "expected a directory, got a file" in done.stderr


def test_a_killed_run_is_no_longer_running_though_its_process_was_not_reaped(
    synthia: Command, tmp_path: Path
) -> None:
    source = write_questions(tmp_path / "q.jsonl", 300)
    log = tmp_path / "calls"
    slow = (
        "--set",
        "engine.latency_ms=50",
        "--set",
        "engine.max_num_seqs=1",
        "--set",
        f"engine.call_log={log}",
    )
    command = command_of("run", source, *SCRIPTED, *slow, "-o", "out")
    with subprocess.Popen(command, cwd=tmp_path, env=make_environment(), stderr=subprocess.DEVNULL) as victim:
        while not read_call_log(log):
            assert victim.poll() is None
            time.sleep(0.01)
        assert read_status(tmp_path / "out").state == "running"
        victim.kill()
        os.waitid(os.P_PID, victim.pid, os.WEXITED | os.WNOWAIT)  # dead, and still in the process table
        assert read_status(tmp_path / "out").state == "interrupted"
