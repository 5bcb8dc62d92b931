"""`verify --rerun`: finished samples made again in other company, on the scripted engine."""

import dataclasses
import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import Command, command_of, make_environment, write_jsonl
from inside import snapshot

from synthia_batch.core.types import Failed, Finished, Message, Request, Row, Sample
from synthia_batch.models.prompts.tokenizer import open_renderer
from synthia_batch.operations.rerun import SampleDifference, choose_batch
from synthia_batch.runner.directory.session import lock_run
from synthia_batch.runner.resume import resolve_kept_job
from synthia_batch.storage.journal.writer import Journal
from synthia_batch.workers.engine import Placement
from synthia_batch.workers.scripted import ScriptedEngine

ROWS = 150
SCRIPTED = ("--engine", "scripted", "--pool", "local", "-s", "none")
SLOW = ("--set", "engine.latency_ms=100", "--set", "engine.max_num_seqs=4")
"""Some four seconds for all rows: time to stop it half-way."""
BROKEN = ("--set", "engine.shows_batch_above=40", "--set", "engine.latency_ms=1")
"""Above the canary's batch, and within the engine's 64: what no canary can see."""


def write_questions(path: Path, rows: int = ROWS) -> Path:
    return write_jsonl(path, [{"prompt": f"What about {n}?"} for n in range(rows)])


def test_a_sound_run_comes_out_the_same_and_nothing_is_touched(synthia: Command, tmp_path: Path) -> None:
    source = write_questions(tmp_path / "q.jsonl")
    assert synthia("run", source, *SCRIPTED, "--set", "engine.fail_every=10", "-o", "out").returncode == 0
    assert "promise   strict: the same bytes for any workers" in synthia("status", "out").stdout
    before = snapshot(tmp_path / "out")
    done = synthia("verify", "out", "--rerun", "30", "--seed", "7", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["finished"], found["chosen"], found["compared"]) == (ROWS - ROWS // 10, 30, 30)
    assert found["differences"] == []
    assert found["batch"] == 15, "other company than it had"
    assert snapshot(tmp_path / "out") == before
    said = synthia("verify", "out", "--rerun", "1000")
    assert said.returncode == 0
    assert "135 of 135 finished samples regenerated, at most 32 at a time: none differ" in said.stdout


def test_an_engine_whose_text_depends_on_the_batch_is_caught(synthia: Command, tmp_path: Path) -> None:
    source = write_questions(tmp_path / "q.jsonl")
    assert synthia("run", source, *SCRIPTED, *BROKEN, "-o", "out").returncode == 0
    before = snapshot(tmp_path / "out")
    done = synthia("verify", "out", "--rerun", "60")
    assert done.returncode == 4, done.stdout
    assert "its response differs from character" in done.stdout
    assert "before: '" in done.stdout
    assert "now:    '" in done.stdout
    assert "60 of 150 finished samples regenerated, at most 30 at a time" in done.stdout
    assert " differ" in done.stdout
    told = synthia("verify", "out", "--rerun", "60", "--json")
    assert told.returncode == 4
    assert {"ordinal", "id", "row_index", "system", "sample_index", "difference"} == set(
        json.loads(told.stdout)["differences"][0]
    )
    assert snapshot(tmp_path / "out") == before


def test_the_canary_catches_what_shows_in_small_batches(synthia: Command, tmp_path: Path) -> None:
    source = write_questions(tmp_path / "q.jsonl")
    broken = ("--set", "engine.shows_batch_above=1")
    done = synthia("run", source, *SCRIPTED, *broken, "-o", "out")
    assert done.returncode == 4, done.stderr
    assert "one prompt two answers, alone and in a batch" in done.stderr
    assert "engine: scripted" in done.stderr
    assert "--determinism fast" in done.stderr
    assert not list((tmp_path / "out").glob("data/*"))
    fast = synthia("run", source, *SCRIPTED, *broken, "--determinism", "fast", "-o", "fast")
    assert fast.returncode == 0, fast.stderr
    again = synthia("verify", "fast", "--rerun", "60")
    assert again.returncode == 4
    assert "fast determinism, which does not promise equal tokens" in again.stdout


def test_an_unfinished_run_is_made_again_as_far_as_it_is(synthia: Command, tmp_path: Path) -> None:
    source = write_questions(tmp_path / "q.jsonl")
    interrupt_run(tmp_path, "run", source, *SCRIPTED, *SLOW, "-o", "out")
    done = synthia("verify", "out", "--rerun", "5", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["compared"] == 5
    assert 5 <= json.loads(done.stdout)["finished"] < ROWS


def test_a_sample_made_twice_with_two_texts_is_refused_and_named(synthia: Command, tmp_path: Path) -> None:
    source = write_questions(tmp_path / "q.jsonl")
    # As if a fence had failed: what the engine makes alone is journaled beside what it made among others.
    broken = ("--set", "engine.shows_batch_above=1", "--determinism", "fast")
    command = ("run", source, *SCRIPTED, *SLOW, *broken, "-o", "out")
    interrupt_run(tmp_path, *command)
    ordinal = journal_again(tmp_path / "out")
    for again in (synthia(*command), synthia("verify", "out")):
        assert again.returncode == 4
        assert f"sample {ordinal} was already finished with different content" in again.stdout + again.stderr
    assert synthia("verify", "out", "--repair").returncode == 0
    assert synthia("verify", "out").returncode == 0


def interrupt_run(directory: Path, *command: str | Path) -> None:
    """Start a run, and have it drain once a few of its samples are finished."""
    child = subprocess.Popen(
        command_of(*command), cwd=directory, env=make_environment(), stderr=subprocess.DEVNULL
    )
    journal = directory / "out" / ".synthia" / "journal" / "shard-00000.wal"
    deadline = time.monotonic() + 60
    while not journal.exists() or journal.read_bytes().count(b'{"finished":') < 8:
        assert child.poll() is None, "the run ended before it could be interrupted"
        assert time.monotonic() < deadline, "no samples in a minute"
        time.sleep(0.02)
    child.send_signal(signal.SIGTERM)
    assert child.wait(60) == 75


def journal_again(run_directory: Path) -> int:
    """Make a finished sample of an unfinished run again, alone, and journal it; return its ordinal."""
    job = resolve_kept_job(run_directory, "test", [])
    with lock_run(job) as session:
        session.inspect()
        (shard,) = session.shards
        finished = session.reopener.read_outcomes(session.states[0])
        sample = next(s for s in session.assembler.list_samples(shard) if s.ordinal in finished)
        token_ids = open_renderer(job.prompt).render(sample.messages)
        engine = ScriptedEngine(job.engine, Placement())
        engine.add(Request(ordinal=sample.ordinal, token_ids=token_ids, seed=sample.seed))
        (outcome,) = engine.step()
        assert outcome != finished[sample.ordinal], "it made the same alone"
        epoch = session.lock.begin_epoch().epoch
        writer = dataclasses.replace(session.writer, epoch=epoch)
        journal = Journal.open(session.run_dir.journal(shard), shard, writer)
        journal.append([outcome])
        journal.sync()
        journal.close()
    return sample.ordinal


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("nowhere", "--rerun", "3"), 2, "not a run directory"),
        (("out", "--rerun", "3", "--repair"), 2, "one after the other"),
        (("out", "--rerun", "0"), 2, "--rerun"),
        (("changed", "--rerun", "3"), 4, "belongs to another job"),
    ],
)
def test_what_cannot_be_made_again_is_refused(
    synthia: Command, tmp_path: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    source = write_questions(tmp_path / "q.jsonl", 3)
    other = write_questions(tmp_path / "r.jsonl", 3)
    assert synthia("run", source, *SCRIPTED, "-o", "out").returncode == 0
    assert synthia("run", other, *SCRIPTED, "-o", "changed").returncode == 0
    write_questions(other, 4)
    done = synthia("verify", *arguments)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr


@pytest.mark.parametrize(("usual", "count"), [(64, 100), (64, 3), (1, 10), (8, 1)])
def test_the_batch_is_never_the_one_that_the_run_had(usual: int, count: int) -> None:
    batch = choose_batch(usual, count)
    assert batch >= 1
    assert batch != min(usual, count)


def make_difference(before: str, now: Finished | Failed) -> SampleDifference:
    row = Row(index=4, id="q4", messages=(Message("user", "x"),), system=None, kept={}, line=5)
    sample = Sample(ordinal=9, row=row, system="synthia", messages=row.messages, index=1, seed=1)
    return SampleDifference(sample=sample, before=make_finished(before), now=now)


def make_finished(text: str, tokens: int = 3) -> Finished:
    return Finished(
        ordinal=9,
        response=text,
        reasoning=None,
        finish_reason="stop",
        prompt_tokens=1,
        completion_tokens=tokens,
    )


def test_the_first_difference_is_shown_where_it_is() -> None:
    text = str(make_difference("a" * 100 + "left of it", make_finished("a" * 100 + "right of it")))
    assert text.startswith("sample 9, row 4 (q4), system 'synthia', sample 1: its response differs")
    assert "from character 100 on" in text
    assert f"before: ...'{'a' * 40}left of it'" in text
    assert f"now:    ...'{'a' * 40}right of it'" in text
    assert "completion_tokens 3 before, 4 now" in str(make_difference("same", make_finished("same", 4)))
    failed = Failed(ordinal=9, code="prompt_too_long", message="by 3")
    assert "now fails: prompt_too_long" in str(make_difference("x", failed))
