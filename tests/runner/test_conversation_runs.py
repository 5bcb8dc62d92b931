"""Conversations from the input to the dataset, on scripted engines."""

import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Command, command_of, make_environment, read_bytes_of_data, write_jsonl
from inside import Answer, call
from reading import list_faults, read_all

from synthia_batch.core.types import Message
from synthia_batch.job.loading.merge import Layer
from synthia_batch.runner.resolve import resolve_job

LOCAL = ("--engine", "scripted", "--pool", "local", "-q")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Any:
    """Run a job on scripted engines in this process and in `tmp_path`; it must end with code 0."""
    monkeypatch.chdir(tmp_path)

    def run(source: str | Path, *flags: str | Path, output: str = "out") -> Answer:
        answer = call(capsys, "run", source, *LOCAL, *flags, "-o", output)
        assert answer.code == 0, answer.err
        return answer

    return run


def write_conversations(path: Path, counts: Sequence[int], odd: tuple[int, int] | None = None) -> Path:
    """Write rows with so many turns; the turn `odd`, as (row, turn), asks about a tarpit."""
    rows = [
        [f"Row {n} turn {k}{' tarpit' if (n, k) == odd else ''}?" for k in range(count)]
        for n, count in enumerate(counts)
    ]
    return write_jsonl(path, [{"turns": turns} for turns in rows])


def read_rows(directory: Path, kind: str = "data") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(directory / kind).to_pylist()
    return rows


def read_turn_calls(path: Path) -> list[tuple[int, int]]:
    lines = [line.partition(".") for line in path.read_text().split()] if path.exists() else []
    return [(int(ordinal), int(turn or 0)) for ordinal, _, turn in lines]


def list_turns(counts: Sequence[int]) -> list[tuple[int, int]]:
    return [(n, k) for n, count in enumerate(counts) for k in range(count)]


def test_a_row_is_one_sample_with_the_whole_conversation(run: Any, tmp_path: Path) -> None:
    write_conversations(tmp_path / "q.jsonl", [3, 1, 2])
    run("q.jsonl", "-s", "Be brief.")
    rows = read_rows(tmp_path / "out")
    assert [len(row["messages"]) for row in rows] == [1 + 6, 1 + 2, 1 + 4]
    for n, row in enumerate(rows):
        system, *turns = row["messages"]
        assert system == {"role": "system", "content": "Be brief."}
        assert [turn["role"] for turn in turns] == ["user", "assistant"] * (len(turns) // 2)
        assert [turn["content"] for turn in turns[::2]] == [
            f"Row {n} turn {k}?" for k in range(len(turns) // 2)
        ]
        assert turns[-1]["content"] == row["response"]
        answers = [turn["content"] for turn in turns[1::2]]
        assert row["completion_tokens"] == sum(len(answer.split()) for answer in answers)
        assert len(set(answers)) == len(answers)
    assert rows[0]["prompt_tokens"] > 3 * rows[1]["prompt_tokens"], "the sum over the turns"


def test_two_system_messages_give_two_conversations_of_each_row(run: Any, tmp_path: Path) -> None:
    write_conversations(tmp_path / "q.jsonl", [3, 2])
    run("q.jsonl", "-s", "synthia", "-s", "none", "-n", "2", "--set", f"engine.call_log={tmp_path / 'calls'}")
    rows = read_rows(tmp_path / "out")
    assert [(row["row_index"], row["system"], row["sample_index"]) for row in rows] == [
        (n, system, k) for n in (0, 1) for system in ("synthia", "none") for k in (0, 1)
    ]
    for row in rows:
        has_system = row["messages"][0]["role"] == "system"
        assert has_system == (row["system"] == "synthia")
        assert len(row["messages"]) == 2 * (3 - row["row_index"]) + has_system
    assert len({json.dumps(row["messages"]) for row in rows}) == 8
    assert sorted(read_turn_calls(tmp_path / "calls")) == list_turns([3] * 4 + [2] * 4)


def test_neither_workers_nor_batches_show_in_the_bytes(run: Any, tmp_path: Path) -> None:
    write_conversations(tmp_path / "q.jsonl", [n % 7 + 1 for n in range(60)])
    run("q.jsonl", output="one")
    for workers, batch in ((1, 1), (3, 2), (4, 64)):
        name = f"{workers}-{batch}"
        run("q.jsonl", "--workers", str(workers), "--set", f"engine.max_num_seqs={batch}", output=name)
        assert read_bytes_of_data(tmp_path / name) == read_bytes_of_data(tmp_path / "one")


def test_a_single_question_gives_what_it_gives_as_a_prompt(run: Any, tmp_path: Path) -> None:
    questions = [f"What is {n}?" for n in range(5)]
    write_jsonl(tmp_path / "turns.jsonl", [{"turns": [question]} for question in questions])
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": question} for question in questions])
    run("turns.jsonl", output="turns")
    run("prompts.jsonl", output="prompts")
    assert read_rows(tmp_path / "turns") == read_rows(tmp_path / "prompts")


def test_both_formats_give_the_same_conversations(tmp_path: Path) -> None:
    turns = [[f"é {n}?", "And\nthen?"][: n % 2 + 1] for n in range(20)]
    jsonl = write_jsonl(tmp_path / "q.jsonl", [{"turns": one} for one in turns])
    pq.write_table(pa.table({"turns": turns}), tmp_path / "q.parquet")
    rows = read_all(jsonl)
    assert rows[1].messages == (Message("user", "é 1?"),)
    assert rows[1].follow_ups == ("And\nthen?",)
    assert rows[0].follow_ups == ()
    assert read_all(tmp_path / "q.parquet") == rows
    assert read_all(jsonl, turns_column="turns") == rows


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ([], "turns is an empty list; it needs at least one message"),
        (["a?", " \n"], "turn 2 is blank"),
        ([""], "turn 1 is blank"),
        (["a?", None], "turn 2 must be a string, not null"),
        (["a?", {"role": "user", "content": "b?"}], "turn 2 must be a string, not an object"),
        ("a?", "turns must be a list of strings, not a string"),
        (None, "turns must be a list of strings, not null"),
        (3, "turns must be a list of strings, not a number"),
    ],
)
def test_a_row_without_turns_is_refused_with_its_line(tmp_path: Path, value: Any, fault: str) -> None:
    path = write_jsonl(tmp_path / "q.jsonl", [{"turns": ["a?"]}, {"turns": value}])
    assert list_faults(path) == [f"{path}:2: column 'turns': {fault}"]


def test_the_command_refuses_blank_turns_before_anything_starts(tmp_path: Path, capsys: Any) -> None:
    path = write_jsonl(tmp_path / "q.jsonl", [{"turns": ["a?"]}, {"turns": ["b?", ""]}, {"turns": []}])
    answer = call(capsys, "run", path, *LOCAL, "-o", tmp_path / "out")
    assert answer.code == 2
    assert f"{path}:2: column 'turns': turn 2 is blank" in answer.err
    assert f"{path}:3: column 'turns': turns is an empty list" in answer.err
    assert not (tmp_path / "out").exists()


def test_parquet_refuses_turns_by_row_and_by_type(tmp_path: Path) -> None:
    path = tmp_path / "q.parquet"
    pq.write_table(pa.table({"turns": pa.array([["a?"], [], None], pa.list_(pa.string()))}), path)
    assert list_faults(path) == [
        f"{path}: row 2: column 'turns': turns is an empty list; it needs at least one message",
        f"{path}: row 3: column 'turns': turns must be a list of strings, not null",
    ]
    pq.write_table(pa.table({"turns": ["a?"]}), path)
    assert list_faults(path) == [
        f"{path}: column 'turns' must be a list of strings, or of messages, not string"
    ]


def test_a_turns_column_and_another_cannot_both_be_named(tmp_path: Path, capsys: Any) -> None:
    path = write_jsonl(tmp_path / "q.jsonl", [{"turns": ["a?"], "prompt": "b?"}])
    answer = call(capsys, "run", path, *LOCAL, "--turns-column", "turns", "--prompt-column", "prompt")
    assert answer.code == 2
    assert "a prompt column ('prompt') and a turns column ('turns') are named" in answer.err


def resolve(source: Path, **values: Any) -> Any:
    engine = {"engine": {"kind": "scripted"}}
    return resolve_job([Layer(origin="argument", values={"input": {"path": source}, **engine, **values})])


def test_the_policy_is_identity_for_conversations_only(tmp_path: Path) -> None:
    prompts = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a?"}])
    turns = write_conversations(tmp_path / "q.jsonl", [2])
    assert resolve(prompts).identity == resolve(prompts, on_overflow="stop").identity
    assert "turns" not in resolve(prompts).identity["input"]["columns"]
    assert resolve(turns).identity["on_overflow"] == "fail"
    assert resolve(turns).fingerprint != resolve(turns, on_overflow="stop").fingerprint


def test_plan_and_validate_say_that_later_prompts_are_not_known(tmp_path: Path, capsys: Any) -> None:
    path = write_conversations(tmp_path / "q.jsonl", [3, 1, 2])
    flags = ("--engine", "scripted", "-n", "2", "-s", "none")
    told = call(capsys, "plan", path, *flags).out
    assert "later turns: 6; only the prompts of first turns are known" in told
    forecast = json.loads(call(capsys, "plan", path, *flags, "--json").out)
    first = len(b"<user>\nRow 0 turn 0?\n<assistant>\n")
    assert forecast["prompt_tokens"]["total"] == 3 * 2 * first
    assert forecast["longest_output_tokens"] == 2 * 6 * 1024
    assert "since later ones contain answers" in call(capsys, "validate", path, *flags).out
    prompts = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a?"}])
    assert "later" not in call(capsys, "plan", prompts, *flags).out.partition("prompt tokens")[2]


POLICIES = ("fail", "stop", "truncate-oldest")


def test_each_policy_is_recorded_in_the_sample_that_overflows(run: Any, tmp_path: Path) -> None:
    """Row 0 overflows in its third turn of four, row 1 never does."""
    filler = "x" * 280
    write_jsonl(
        tmp_path / "q.jsonl",
        [{"turns": ["a?", f"b {filler}?", f"c {filler}?", "d?"]}, {"turns": ["a?", "b?", "c?"]}],
    )
    common = ("-s", "none", "--set", "model.max_model_len=600", "--max-tokens", "24")
    for policy in POLICIES:
        run("q.jsonl", *common, "--on-overflow", policy, output=policy)
    whole = read_rows(tmp_path / "stop")[1]
    assert all(read_rows(tmp_path / policy)[-1] == whole for policy in POLICIES)
    assert len(whole["messages"]) == 6

    (failed,) = read_rows(tmp_path / "fail", "failed")
    assert failed["code"] == "context_overflow"
    assert failed["message"].startswith("turn 3 of 4: the prompt has ")
    assert failed["message"].endswith(" tokens; max_model_len is 600")
    assert [turn["role"] for turn in failed["messages"]] == ["user", "assistant", "user", "assistant", "user"]

    stopped = read_rows(tmp_path / "stop")[0]
    assert stopped["finish_reason"] == "context_overflow"
    assert [turn["role"] for turn in stopped["messages"]] == ["user", "assistant"] * 2
    assert stopped["messages"] == failed["messages"][:-1]
    assert stopped["response"] == stopped["messages"][-1]["content"]

    truncated = read_rows(tmp_path / "truncate-oldest")[0]
    assert truncated["finish_reason"] == "context_truncated"
    assert truncated["messages"][:4] == stopped["messages"], "nothing is missing in the output"
    assert len(truncated["messages"]) == 8
    assert all(turn["content"] for turn in truncated["messages"])


def test_a_turn_that_hangs_engines_is_set_aside_with_the_answers_before_it(
    synthia: Command, tmp_path: Path
) -> None:
    counts = [4] * 24
    source = write_conversations(tmp_path / "q.jsonl", counts, odd=(7, 2))
    log = tmp_path / "calls"
    done = synthia(
        "run", source, *LOCAL, "--workers", "2", "--set", "engine.hang_on=tarpit", "--set",
        "pool.watchdog_seconds=1", "--set", f"engine.call_log={log}", "-o", "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (failed,) = read_rows(tmp_path / "out", "failed")
    assert (failed["row_index"], failed["code"]) == (7, "engine_crash")
    assert failed["message"].startswith("turn 3 of 4: the engine died or hung")
    assert [turn["role"] for turn in failed["messages"]] == [*["user", "assistant"] * 2, "user"]
    made = read_turn_calls(log)
    assert sorted(made) == [turn for turn in list_turns(counts) if turn not in ((7, 2), (7, 3))]
    plain = synthia("run", write_conversations(tmp_path / "p.jsonl", counts), *LOCAL, "-o", "plain")
    assert plain.returncode == 0
    others = [row["messages"] for row in read_rows(tmp_path / "plain") if row["row_index"] != 7]
    assert [row["messages"] for row in read_rows(tmp_path / "out")] == others


def drain_within(directory: Path, *arguments: str | Path, log: Path, turns: int) -> None:
    """Run until so many turns were made, and ask the run to drain: it must not wait for the others."""
    command = command_of(*arguments, "--set", f"engine.call_log={log}")
    child = subprocess.Popen(command, cwd=directory, env=make_environment(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(read_turn_calls(log)) < turns:
        assert child.poll() is None, "the run ended before it could be drained"
        assert time.monotonic() < deadline, f"no {turns} turns in a minute"
        time.sleep(0.02)
    child.terminate()
    assert child.wait(60) == 75


def test_a_drained_run_goes_on_in_the_middle_of_its_conversations(synthia: Command, tmp_path: Path) -> None:
    counts = [60, 50]
    source = write_conversations(tmp_path / "q.jsonl", counts)
    job = ("run", source, *LOCAL, "--set", "engine.latency_ms=100", "-o", "out")
    first, second = tmp_path / "first", tmp_path / "second"
    drain_within(tmp_path, *job, log=first, turns=6)
    resumed = synthia(*job, "--set", f"engine.call_log={second}", "--set", "engine.latency_ms=0")
    assert resumed.returncode == 0, resumed.stderr
    assert sorted([*read_turn_calls(first), *read_turn_calls(second)]) == list_turns(counts)
    plain = synthia("run", source, *LOCAL, "-o", "plain")
    assert plain.returncode == 0
    assert read_bytes_of_data(tmp_path / "out") == read_bytes_of_data(tmp_path / "plain")


FAILING = ("--set", "engine.fail_every=3", "--set", "engine.fail_while_missing=mended")
COUNTS = [3, 2, 4, 1, 5, 2]


def test_a_retry_makes_failed_conversations_again_and_keeps_the_others(
    run: Any, tmp_path: Path, capsys: Any
) -> None:
    write_conversations(tmp_path / "q.jsonl", COUNTS)
    run("q.jsonl", *FAILING, output="failing")
    (tmp_path / "mended").touch()
    run("q.jsonl", *FAILING, output="whole")
    assert len(read_rows(tmp_path / "failing", "failed")) == 2
    answer = call(capsys, "retry", "failing", "-q", "--set", f"engine.call_log={tmp_path / 'calls'}")
    assert answer.code == 0, answer.err
    assert read_bytes_of_data(tmp_path / "failing") == read_bytes_of_data(tmp_path / "whole")
    assert sorted(read_turn_calls(tmp_path / "calls")) == [
        (n, k) for n, k in list_turns(COUNTS) if n % 3 == 0
    ]
    assert call(capsys, "verify", "failing", "-q").code == 0


def test_a_repair_keeps_the_conversations_of_a_sound_part(run: Any, tmp_path: Path, capsys: Any) -> None:
    write_conversations(tmp_path / "q.jsonl", COUNTS)
    run("q.jsonl", *FAILING)
    expected = read_bytes_of_data(tmp_path / "out")
    (part,) = (tmp_path / "out" / "failed").glob("*.parquet")
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    assert call(capsys, "verify", "out", "-q").code == 4
    assert call(capsys, "verify", "out", "-q", "--repair").code == 0
    run("q.jsonl", *FAILING, "--set", f"engine.call_log={tmp_path / 'calls'}")
    assert read_bytes_of_data(tmp_path / "out") == expected
    assert sorted(read_turn_calls(tmp_path / "calls")) == [(0, 0), (3, 0)]


def test_a_retry_of_an_unfinished_run_keeps_the_turns_of_the_others(synthia: Command, tmp_path: Path) -> None:
    """Sample 0 has failed and sample 1 is in the middle of its conversation when the run drains."""
    counts = [2, 60]
    source = write_conversations(tmp_path / "q.jsonl", counts)
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    job = ("run", source, *LOCAL, "--set", "engine.fail_every=5", *FAILING[2:])
    drain_within(tmp_path, *job, "--set", "engine.latency_ms=100", "-o", "out", log=first, turns=6)
    assert (0, 0) in read_turn_calls(first)
    (tmp_path / "mended").touch()
    retried = synthia(
        "retry", "out", "-q", "--set", f"engine.call_log={second}", "--set", "engine.latency_ms=0"
    )
    assert retried.returncode == 0, retried.stderr
    assert {sample for sample, _ in read_turn_calls(second)} == {0}, "the other is left to the run"
    done = synthia(*job, "--set", f"engine.call_log={third}", "-o", "out")
    assert done.returncode == 0, done.stderr
    turns = sorted(turn for log in (first, second, third) for turn in read_turn_calls(log))
    assert turns == sorted([(0, 0), *list_turns(counts)]), "only what failed is made twice"
    plain = synthia(*job, "-o", "plain")
    assert plain.returncode == 0
    assert read_bytes_of_data(tmp_path / "out") == read_bytes_of_data(tmp_path / "plain")
