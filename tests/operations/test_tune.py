"""`synthia-batch tune` on the scripted engine, whose latency does not depend on its batch."""

import json
import signal
import subprocess
import time
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from conftest import Command, command_of, make_environment, write_jsonl
from inside import call

from synthia_batch.job.loading.merge import Layer
from synthia_batch.operations.tune import select_requests
from synthia_batch.operations.tune_search import is_gain
from synthia_batch.runner.resolve import resolve_job
from synthia_batch.runner.resolve.tuned import Tuned, keep_tuned, read_tuned
from synthia_batch.scheduler.events import Progress, WorkerProgress

SCRIPTED = ("--engine", "scripted", "--pool", "local", "--set", "engine.latency_ms=150")


def write_questions(path: Path, count: int = 200) -> Path:
    return write_jsonl(path, [{"prompt": f"Tell me about {n}."} for n in range(count)])


def test_the_fastest_batch_is_found_printed_and_taken_by_later_jobs(synthia: Command, tmp_path: Path) -> None:
    source = write_questions(tmp_path / "q.jsonl")
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    before = json.loads(synthia("plan", source, *SCRIPTED, "--json", **cache).stdout)
    tuned = synthia("tune", source, *SCRIPTED, "--prompts", "128", **cache)
    assert tuned.returncode == 0, tuned.stderr
    # Twice the batch in the same time, and no prompts to fill more.
    assert "best: --set engine.max_num_seqs=128" in tuned.stdout
    assert "the job's own settings" in tuned.stdout
    assert "measuring max_num_seqs=128" in tuned.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "q.jsonl"], "no run directory"

    after = json.loads(synthia("plan", source, *SCRIPTED, "--json", **cache).stdout)
    setting = after["settings"]["engine.max_num_seqs"]
    assert setting == {"value": 128, "origin": f"tuned on {date.today()}"}
    assert after["fingerprint"] == before["fingerprint"], "a run begun before goes on"
    said = synthia("plan", source, *SCRIPTED, "--set", "engine.max_num_seqs=3", "--json", **cache)
    assert json.loads(said.stdout)["settings"]["engine.max_num_seqs"] == {"value": 3, "origin": "flag"}

    again = synthia("tune", source, *SCRIPTED, "--prompts", "128", "--json", "-q", **cache)
    found = json.loads(again.stdout)
    assert found["trials"][0]["settings"] == {}, "a search starts from the defaults, not from the last"
    assert found["best"] == found["remembered"] == {"max_num_seqs": 128}
    assert found["flags"] == ["--set engine.max_num_seqs=128"]


def test_settings_that_do_not_work_are_in_the_table_and_never_the_best(
    synthia: Command, tmp_path: Path
) -> None:
    source = write_questions(tmp_path / "q.jsonl")
    done = synthia(
        "tune",
        source,
        *SCRIPTED,
        "--set",
        "engine.oom_above=64",
        "--json",
        XDG_CACHE_HOME=str(tmp_path / "c"),
    )
    assert done.returncode == 0, done.stderr
    trials = {json.dumps(trial["settings"]): trial for trial in json.loads(done.stdout)["trials"]}
    failed = trials['{"max_num_seqs": 128}']
    assert failed["tokens_per_second"] is None
    assert "memory holds 64" in failed["reason"]
    assert json.loads(done.stdout)["best"] == {}


def test_an_engine_that_does_not_work_as_the_job_says_is_an_error(synthia: Command, tmp_path: Path) -> None:
    source = write_questions(tmp_path / "q.jsonl")
    done = synthia("tune", source, *SCRIPTED, "--set", "engine.oom_above=2")
    assert done.returncode == 69
    assert "memory holds 2" in done.stderr


@pytest.mark.parametrize(
    ("tokens", "code", "why"),
    [
        (0, 69, "the engine generated no tokens"),
        (101, 2, "generated 101 tokens in less than a millisecond, too short to measure; give it more"),
    ],
)
def test_an_engine_that_answers_at_once_has_not_failed(
    tokens: int, code: int, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    worker = WorkerProgress(worker=0, busy_seconds=0.0, heard_seconds=0.001, in_flight=0, steps=1)
    told = Progress(
        elapsed_seconds=0.002, samples=8, tokens=tokens, prompt_tokens=216, cached_prompt_tokens=0,
        truncated=0, failures={}, workers=(worker,),
    )  # fmt: skip
    monkeypatch.setattr(
        "synthia_batch.operations.tune.run_requests", lambda ad_hoc, requests: ad_hoc.publish(told)
    )
    done = call(capsys, "tune", write_questions(tmp_path / "q.jsonl", 8), *SCRIPTED[:4])
    assert (done.code, why in done.err) == (code, True), done.err


def test_the_budget_ends_the_search_and_keeps_what_was_found(synthia: Command, tmp_path: Path) -> None:
    source = write_questions(tmp_path / "q.jsonl")
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    slow = (*SCRIPTED, "--set", "engine.load_seconds=7", "--prompts", "128", "--json")
    done = synthia("tune", source, *slow, "--budget", "12s", **cache)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["stopped"] == "the deadline"
    assert len(found["trials"]) == 1
    assert found["remembered"] is None, "one measurement is no comparison"
    nothing = synthia("tune", source, *slow, "--budget", "1s", **cache)
    assert nothing.returncode == 2
    assert "--budget" in nothing.stderr


def test_ctrl_c_ends_the_search_and_prints_what_was_measured(tmp_path: Path) -> None:
    source = write_questions(tmp_path / "q.jsonl")
    command = command_of("tune", source, *SCRIPTED, "--set", "engine.load_seconds=2", "--prompts", "64")
    environment = make_environment(XDG_CACHE_HOME=str(tmp_path / "cache"))
    with (tmp_path / "err").open("w") as errors:
        child = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    deadline = time.monotonic() + 60
    while (tmp_path / "err").read_text().count("measuring") < 2:
        assert child.poll() is None, (tmp_path / "err").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=30)
    assert child.returncode == 130
    assert "the job's own settings" in out
    assert "no settings were saved" in (tmp_path / "err").read_text()
    assert not (tmp_path / "cache" / "synthia-batch" / "tuned").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--engine", "vllm", "--pool", "local"), "remove --pool local"),
        (("--engine", "scripted", "--budget", "soon"), "such as 90s, 10m or 1h"),
        (("--engine", "scripted", "--budget", "0m"), "such as 90s, 10m or 1h"),
    ],
)
def test_what_cannot_be_tuned_is_refused(
    synthia: Command, tmp_path: Path, flags: tuple[str, ...], said: str
) -> None:
    done = synthia("tune", write_questions(tmp_path / "q.jsonl", 3), *flags)
    assert done.returncode == 2
    assert said in done.stderr


def test_prompts_come_from_all_over_the_input(tmp_path: Path) -> None:
    values = {"input": {"path": write_questions(tmp_path / "q.jsonl", 1000)}, "engine": {"kind": "scripted"}}
    job = resolve_job([Layer(origin="flag", values=values)])
    requests = select_requests(job, 50)
    assert [request.ordinal for request in requests] == list(range(50))
    numbers = [int(bytes(request.token_ids).rsplit(b"about ")[-1].split(b".")[0]) for request in requests]
    assert len(set(numbers)) == 50
    assert max(numbers) - min(numbers) > 900
    assert len(select_requests(job, 5000)) == 1000


def test_only_what_is_no_identity_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = {"model": "m", "hardware": "h"}
    assert read_tuned(place) is None
    settings = {"max_num_seqs": 7, "speculative_config": {"method": "ngram"}}
    found = Tuned(place=place, settings=settings, tokens_per_second=1.0, found_on=date(2026, 11, 21))
    assert keep_tuned(found) == {"max_num_seqs": 7}
    layer = read_tuned(place)
    assert layer is not None
    assert (layer.origin, layer.values, layer.is_explicit) == (
        "tuned on 2026-11-21", {"engine": {"max_num_seqs": 7}}, False,
    )  # fmt: skip
    assert read_tuned({**place, "hardware": "another"}) is None
    for path in (tmp_path / "synthia-batch" / "tuned").iterdir():
        path.write_text('{"settings": {"max_num_seqs": ')
    assert read_tuned(place) is None, "a damaged file is no file"


def test_a_step_within_the_noise_is_no_gain() -> None:
    assert not is_gain(101.0, 100.0)
    assert is_gain(110.0, 100.0)
