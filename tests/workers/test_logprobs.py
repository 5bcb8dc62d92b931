"""Log-probabilities: journaled to the last bit, a typed column, and the same whatever happened."""

import json
import subprocess
import time
from array import array
from math import inf, nextafter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Command, command_of, make_environment, read_bytes_of_data, read_call_log, write_jsonl
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion

from synthia_batch.core.types import Finished, Logprobs, Shard
from synthia_batch.storage.journal.frames import encode_frame
from synthia_batch.storage.journal.logprobs import decode_logprobs_json, encode_logprobs_json
from synthia_batch.storage.journal.reader import replay
from synthia_batch.storage.journal.writer import Journal
from synthia_batch.storage.lock import WriterEpoch
from synthia_batch.storage.parts.logprobs import LOGPROBS, decode_logprobs, encode_logprobs

SCRIPTED = ("--engine", "scripted", "--pool", "local", "-s", "none")
SOME = Logprobs(
    width=3,
    ids=array("i", [5, 5, 7, 9, 1, 2]),
    tokens=("a", "a", "é", "", "\n", "c"),
    values=array("f", [-0.1, -0.1, -3.3, -inf, -1e-30, -100.5]),
)
NONE_AT_ALL = Logprobs(width=0, ids=array("i"), tokens=(), values=array("f"))
ALONE = Logprobs(width=1, ids=array("i", [3, 4]), tokens=("x", "y"), values=array("f", [-0.5, -0.25]))


@given(st.lists(st.floats(width=32, allow_nan=False, max_value=0), min_size=1))
def test_a_journal_gives_every_number_back_to_the_last_bit(numbers: list[float]) -> None:
    given_values = array("f", numbers)
    logprobs = Logprobs(
        width=1, ids=array("i", range(len(numbers))), tokens=("t",) * len(numbers), values=given_values
    )
    back = decode_logprobs_json(json.loads(json.dumps(encode_logprobs_json(logprobs), allow_nan=False)))
    assert back.values.tobytes() == given_values.tobytes()
    assert back == logprobs


def test_neighbours_of_32_bits_stay_apart_in_a_journal() -> None:
    ones = np.float32(-0.1), np.nextafter(np.float32(-0.1), np.float32(-1))
    spelt = [
        encode_logprobs_json(Logprobs(width=1, ids=array("i", [1]), tokens=("t",), values=array("f", [one])))
        for one in ones
    ]
    assert spelt[0]["values"] != spelt[1]["values"]
    assert nextafter(-0.1, -1) != -0.1


def test_the_column_holds_the_tokens_with_the_likeliest_of_their_places() -> None:
    column = encode_logprobs([SOME, None, NONE_AT_ALL, ALONE])
    assert column.type == LOGPROBS
    column.validate(full=True)
    first, second, third, fourth = column.to_pylist()
    assert [place["token"] for place in first] == ["a", ""]
    assert [[entry["token_id"] for entry in place["top"]] for place in first] == [[5, 7], [1, 2]]
    assert first[1]["logprob"] == -inf
    assert (second, third) == (None, [])
    assert [place["top"] for place in fourth] == [[], []]
    assert decode_logprobs(pa.chunked_array([column])) == [SOME, None, NONE_AT_ALL, ALONE]


def test_a_column_without_any_is_one_all_the_same() -> None:
    assert encode_logprobs([None, None]).to_pylist() == [None, None]


def test_they_survive_a_journal_and_others_are_written_as_before(tmp_path: Path) -> None:
    shard = Shard(number=0, count=1, first_row=0, stop_row=2, first=0, stop=2)
    writer = WriterEpoch(plan_digest="d", epoch=1, boot="b")
    made = [
        Finished(
            ordinal=n, response="r", reasoning=None, finish_reason="stop", prompt_tokens=1,
            completion_tokens=2, logprobs=logprobs,
        )
        for n, logprobs in enumerate((SOME, None))
    ]  # fmt: skip
    journal = Journal.open(tmp_path / "j.wal", shard, writer)
    journal.append(made)
    journal.close()
    assert list(replay(tmp_path / "j.wal", shard, writer).values()) == made
    plain = encode_frame(
        {
            "finished": 1, "response": "r", "reasoning": None, "finish_reason": "stop", "prompt_tokens": 1,
            "completion_tokens": 2,
        }
    )  # fmt: skip
    assert (tmp_path / "j.wal").read_bytes().endswith(plain)


def test_kills_and_batches_do_not_show_and_no_other_run_has_the_column(
    synthia: Command, tmp_path: Path
) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"prompt": f"Question {n}?"} for n in range(40)])
    job = ("run", source, *SCRIPTED, "--logprobs", 2, "--set", "engine.fail_every=9")
    alone = synthia(*job, "-o", "alone")
    assert alone.returncode == 0, alone.stderr
    slow = (
        "--set",
        "engine.latency_ms=40",
        "--set",
        "engine.max_num_seqs=2",
        "--set",
        "engine.call_log=calls",
    )
    driver = subprocess.Popen(
        command_of(*job, *slow, "-o", "killed"),
        cwd=tmp_path,
        env=make_environment(),
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while len(read_call_log(tmp_path / "calls")) < 12:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    driver.kill()
    driver.wait()
    resumed = synthia(*job, "-o", "killed")
    assert resumed.returncode == 0, resumed.stderr
    assert read_bytes_of_data(tmp_path / "killed") == read_bytes_of_data(tmp_path / "alone")
    rows = pq.read_table(tmp_path / "alone" / "data").to_pylist()
    assert [len(row["logprobs"]) for row in rows] == [row["completion_tokens"] for row in rows]
    assert all(len(place["top"]) == 2 for row in rows for place in row["logprobs"])
    for command in (("verify", "alone", "--rows"), ("verify", "alone", "--rerun", 7)):
        checked = synthia(*command)
        assert checked.returncode == 0, checked.stdout + checked.stderr
    card = (tmp_path / "alone" / "README.md").read_text()
    assert "| logprobs | `list<element: struct<token_id: int32, token: string, logprob: float" in card
    plain = synthia("run", source, *SCRIPTED, "-o", "plain")
    assert plain.returncode == 0
    assert "logprobs" not in pq.read_table(tmp_path / "plain" / "data").column_names


def test_a_retry_keeps_those_of_what_was_finished(synthia: Command, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"prompt": f"Question {n}?"} for n in range(12)])
    mended = tmp_path / "mended"
    job = (
        "run", source, *SCRIPTED, "--logprobs", 1, "--set", "engine.fail_every=4", "--set",
        f"engine.fail_while_missing={mended}",
    )  # fmt: skip
    assert synthia(*job, "-o", "out").returncode == 0
    before = pq.read_table(tmp_path / "out" / "data").to_pylist()
    mended.touch()
    again = synthia("retry", "out")
    assert again.returncode == 0, again.stderr
    now = {row["row_index"]: row for row in pq.read_table(tmp_path / "out" / "data").to_pylist()}
    assert len(now) == 12
    assert [now[row["row_index"]] for row in before] == before
    assert synthia(*job, "-o", "fresh").returncode == 0
    assert read_bytes_of_data(tmp_path / "out") == read_bytes_of_data(tmp_path / "fresh")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ("--logprobs", "-1"),
            "sampling.logprobs (flag): Input should be greater than or equal to 0, got -1",
        ),
        (("--logprobs", "2", "--keep-columns", "logprobs"), "column 'logprobs' cannot be kept"),
    ],
)
def test_what_cannot_be_had_is_refused(
    synthia: Command, tmp_path: Path, flags: tuple[str, ...], words: str
) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"prompt": "Why?", "logprobs": 1}])
    done = synthia("plan", source, *SCRIPTED, *flags)
    assert done.returncode == 2
    assert words in done.stderr


def test_an_exported_batch_has_them_as_openais_types_know_them(synthia: Command, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"prompt": "Why?"}, {"prompt": "How?"}])
    assert synthia("run", source, *SCRIPTED, "--logprobs", 2, "-n", 2, "-o", "out").returncode == 0
    exported = synthia("export", "out", "--to", "openai-batch")
    assert exported.returncode == 0, exported.stderr
    rows = pq.read_table(tmp_path / "out" / "data").to_pylist()
    bodies = [json.loads(line)["response"]["body"] for line in exported.stdout.splitlines()]
    choices = [c for body in bodies for c in ChatCompletion.model_validate(body, strict=True).choices]
    assert len(choices) == len(rows) == 4
    for choice, row in zip(choices, rows, strict=True):
        assert choice.logprobs is not None
        content = choice.logprobs.content or []
        assert [place.token for place in content] == [place["token"] for place in row["logprobs"]]
        assert [place.logprob for place in content] == [place["logprob"] for place in row["logprobs"]]
        assert all(len(place.top_logprobs) == 2 for place in content)
    carried = synthia("export", "out", "--to", "messages", "--keep-columns", "logprobs")
    assert json.loads(carried.stdout.splitlines()[0])["logprobs"] == rows[0]["logprobs"]
