"""Flags of answers: what each measures, the column, and what is set aside, whatever the run went through."""

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import Command, command_of, make_environment, read_bytes_of_data, write_jsonl
from endpoints import MODEL, Call, Endpoint, Reply, complete

from synthia_batch import open_run
from synthia_batch.core.types import Failed, Finished, Row, Sample
from synthia_batch.core.types import Message as Turn
from synthia_batch.errors import UsageError
from synthia_batch.job.schema import Job
from synthia_batch.results.quality import language
from synthia_batch.results.quality.flags import Flagger, identify_flags, is_in_another_language
from synthia_batch.results.quality.language import detect_language

ALL = "repetition,empty,refusal,language,duplicate"
QUESTION = "Why is the sky blue at noon, and why is it red when the sun sets?"
PLAIN = "Light of short waves is scattered most, so the sky looks blue while the sun stands high."
ANSWERS = {
    "plain": PLAIN,
    "again": f" {PLAIN}\n",
    "empty": "  \n ",
    "loop": PLAIN + " and then it goes on and on" * 20,
    "refusal": "I'm sorry, but I can't help with that. Ask me about something else, please.",
    "german": "Kurzwelliges Licht wird am meisten gestreut, deshalb sieht der Himmel am Mittag blau aus.",
    "code": "x = 1\ny = 2\nprint(x + y)",
}
EXPECTED = {
    "plain": [],
    "again": ["duplicate"],
    "empty": ["empty"],
    "loop": ["repetition"],
    "refusal": ["refusal"],
    "german": ["language"],
    "code": [],
}


def answer(call: Call, before: int) -> Reply | None:
    name = call.text.partition(":")[0]
    return (
        complete(call, message={"role": "assistant", "content": ANSWERS[name]}) if name in ANSWERS else None
    )


def write_job(directory: Path) -> tuple[str | Path, ...]:
    rows = [{"id": name, "question": f"{name}: {QUESTION}"} for name in ANSWERS]
    source = write_jsonl(directory / "q.jsonl", rows)
    return (source, "--id-column", "id", "--engine", "openai", "-m", MODEL, "--determinism", "fast")


def read_flags(directory: Path) -> dict[str, list[str]]:
    rows = pq.read_table(directory / "data", columns=["id", "flags"]).to_pylist()
    return {row["id"]: row["flags"] for row in rows}


def test_answers_of_known_text_get_their_flags_in_a_column(synthia: Command, tmp_path: Path) -> None:
    job = write_job(tmp_path)
    with Endpoint(answer) as server:
        done = synthia("run", *job, "--base-url", server.url, "--flag", ALL, "-o", "out")
        assert done.returncode == 0, done.stderr
        plain = synthia("run", *job, "--base-url", server.url, "-o", "plain")
        assert plain.returncode == 0, plain.stderr
    assert read_flags(tmp_path / "out") == EXPECTED
    assert {sample.id: list(sample.flags) for sample in open_run(tmp_path / "out").samples()} == EXPECTED
    assert "flags" not in pq.read_table(tmp_path / "plain" / "data").column_names
    assert next(open_run(tmp_path / "plain").samples()).flags == ()
    assert next(open_run(tmp_path / "out").samples(kept=[])).flags == ()
    assert synthia("verify", "out", "--rows").returncode == 0
    assert "flags: names" in (tmp_path / "out" / "README.md").read_text()
    assert synthia("export", "out", "--to", "messages").returncode == 0


def test_what_is_flagged_is_set_aside_where_that_is_asked_for(synthia: Command, tmp_path: Path) -> None:
    job = (*write_job(tmp_path), "--flag", ALL, "--drop-flagged", "-o", "out")
    with Endpoint(answer) as server:
        done = synthia("run", *job, "--base-url", server.url, "--json")
        assert done.returncode == 0, done.stderr
        assert '"finished": 2, "failed": 5' in done.stdout
        failed = pq.read_table(tmp_path / "out" / "failed").to_pylist()
        codes = {name: f"flagged_{flags[0]}" for name, flags in EXPECTED.items() if flags}
        assert {row["id"]: row["code"] for row in failed} == codes
        assert read_flags(tmp_path / "out") == {"plain": [], "code": []}
        assert open_run(tmp_path / "out").statistics().failures == dict.fromkeys(codes.values(), 1)
        assert synthia("verify", "out", "--rows").returncode == 0
        status = synthia("status", "out", "--json").stdout
        assert '"flagged_language": 1' in status

        # Made again, they come to the same; of a cause that is gone, they are samples.
        before = read_bytes_of_data(tmp_path / "out")
        again = synthia("retry", "out", "--trust")
        assert again.returncode == 0, again.stderr
        assert read_bytes_of_data(tmp_path / "out") == before
        server.behave = lambda call, before: complete(call, message={"content": f"{PLAIN} {call.text}"})
        mended = synthia("retry", "out", "--trust", "--code", "flagged_refusal")
        assert mended.returncode == 0, mended.stderr
    assert set(read_flags(tmp_path / "out")) == {"plain", "refusal", "code"}
    too_many = synthia("run", *job, "--base-url", server.url, "--max-failures", "1")
    assert too_many.returncode == 3


def test_flags_are_the_same_for_any_workers_and_kills(synthia: Command, tmp_path: Path) -> None:
    rows = [{"question": f"What is {n % 7}?"} for n in range(60)]
    source = write_jsonl(tmp_path / "q.jsonl", rows)
    words = ("--set", "engine.max_words=1", "--flag", "duplicate,empty", "--drop-flagged", "-n", "3")
    job = (source, "--engine", "scripted", "--pool", "local", *words)
    whole = synthia("run", *job, "-o", "whole")
    assert whole.returncode == 0, whole.stderr
    slow = command_of("run", *job, "-o", "out", "--workers", "3", "--set", "engine.latency_ms=300")
    slow += ["--set", "engine.max_num_seqs=4"]
    for count in (20, 90):
        process = subprocess.Popen(slow, cwd=tmp_path, env=make_environment(), stderr=subprocess.DEVNULL)
        wait_for(tmp_path / "out", count, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = synthia("run", *job, "-o", "out", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert read_bytes_of_data(tmp_path / "out") == read_bytes_of_data(tmp_path / "whole")
    assert open_run(tmp_path / "out").statistics().failures["flagged_duplicate"] > 10


def wait_for(directory: Path, count: int, process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        has_begun = (directory / ".synthia" / "plan.json").exists()
        if has_begun and open_run(directory).statistics().finished >= count:
            return
        assert process.poll() is None
        time.sleep(0.02)
    raise AssertionError("the run did not get so far")


def test_flags_are_identity_in_any_order(synthia: Command, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"question": "What is 1?"}])
    job = (source, "--engine", "scripted", "--pool", "local", "-o", "out")
    assert synthia("run", *job, "--flag", "empty,refusal").returncode == 0
    assert "already complete" in synthia("run", *job, "--flag", "refusal, empty").stderr
    other = synthia("run", *job, "--flag", "empty,refusal", "--drop-flagged")
    assert other.returncode == 4
    assert "flags.drop" in other.stderr
    assert "flags.names" in synthia("run", *job).stderr
    unknown = synthia("run", *job, "--flag", "emty")
    assert unknown.returncode == 2
    assert "repetition" in unknown.stderr
    nothing = synthia("run", *job, "--drop-flagged")
    assert nothing.returncode == 2
    assert "--flag repetition,empty" in nothing.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PLAIN, "en"),
        (ANSWERS["german"], "de"),
        ("El cielo es azul porque la luz se dispersa en la atmósfera.", "es"),
        ("天空是蓝色的，因为光在大气中散射，所以我们看到蓝色。", "zh"),
        ("Paris", None),
        (ANSWERS["code"], None),
        ("1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14", None),
        ("", None),
        ("\ud800" * 40, None),
    ],
)
def test_a_language_is_told_where_it_is_sure(text: str, expected: str | None) -> None:
    assert detect_language(text) == expected


def test_only_two_sure_languages_differ() -> None:
    assert is_in_another_language(QUESTION, ANSWERS["german"])
    assert not is_in_another_language(QUESTION, PLAIN)
    assert not is_in_another_language("2 + 2?", ANSWERS["german"])
    assert not is_in_another_language(QUESTION, "Paris")


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "find_spec", lambda name: None)
    job = Job.model_validate({"input": {"path": "q.jsonl"}, "flags": ["language"]})
    with pytest.raises(UsageError, match=r"synthia-batch\[flags\]"):
        identify_flags(job)
    assert identify_flags(job.model_copy(update={"flags": ("empty",)})) == {"names": ["empty"], "drop": False}


def test_a_duplicate_is_the_later_one_and_what_failed_is_none() -> None:
    row = Row(index=0, id="a", messages=(Turn("user", "?"),), system=None, kept={}, line=1)
    samples = [
        Sample(ordinal=n, row=row, system="none", messages=row.messages, index=n, seed=n) for n in range(4)
    ]
    texts = {0: "one", 2: "one ", 3: "two"}
    outcomes: dict[int, Finished | Failed] = {
        n: Finished(
            ordinal=n,
            response=text,
            reasoning=None,
            finish_reason="stop",
            prompt_tokens=1,
            completion_tokens=1,
        )
        for n, text in texts.items()
    }
    outcomes[1] = Failed(ordinal=1, code="engine_error", message="x")
    apply = Flagger(names=frozenset({"duplicate"}), drops=True).open_shard()
    settled = {sample.ordinal: apply(sample, outcomes[sample.ordinal]) for sample in samples}
    assert [type(settled[n]).__name__ for n in range(4)] == ["Finished", "Failed", "Failed", "Finished"]
    assert settled[1] is outcomes[1]
    assert settled[2].code == "flagged_duplicate"
