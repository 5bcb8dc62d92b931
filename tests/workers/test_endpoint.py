"""Jobs whose text a server makes: the command, against a server on loopback."""

import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import Command, command_of, make_environment, read_bytes_of_data, write_jsonl
from endpoints import MODEL, QUESTION, Call, Endpoint, Reply, complete, fail
from harness import WarmProcess, start_warm_process
from inside import Answer, call

from synthia_batch import Job, open_run
from synthia_batch.errors import UsageError
from synthia_batch.job.loading.merge import Layer
from synthia_batch.runner.resolve import resolve_job
from synthia_batch.workers.openai import engine as openai_engine
from synthia_batch.workers.openai import settings as openai_settings
from synthia_batch.workers.openai.retry import BACKOFF

KEY = "sk-secret-5f1c9"
FLAGS = ("--engine", "openai", "--model", MODEL, "--determinism", "fast", "-o", "out")


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmProcess]:
    """With the client, whose import takes longer than a run."""
    with start_warm_process(tmp_path_factory.mktemp("warm"), openai_engine.__name__) as process:
        yield process


@pytest.fixture(autouse=True)
def _no_key_and_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server() -> Iterator[Endpoint]:
    with Endpoint() as endpoint:
        yield endpoint


def write_questions(directory: Path, count: int = 8) -> Path:
    return write_jsonl(directory / "q.jsonl", [{"question": f"What is {n}?"} for n in range(count)])


def ask(synthia: Command, server: Endpoint, directory: Path, *flags: str | Path, **environment: str) -> Any:
    source = directory / "q.jsonl"
    source = source if source.exists() else write_questions(directory)
    return synthia("run", source, *FLAGS, "--base-url", server.url, *flags, **environment)


Ask = Callable[..., Answer]


@pytest.fixture
def ask_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Ask:
    """As `ask`, in this process, with pauses of a twentieth between the tries of a request."""
    monkeypatch.chdir(tmp_path)
    write_questions(tmp_path)
    monkeypatch.setattr(openai_engine, "BACKOFF", replace(BACKOFF, first_seconds=0.025, longest_seconds=1.0))
    return lambda server, *flags: call(capsys, "run", "q.jsonl", *FLAGS, "--base-url", server.url, *flags)


def read_rows(directory: Path, kind: str = "data") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(directory / "out" / kind).to_pylist()
    return rows


def test_a_servers_answers_become_the_dataset(synthia: Command, server: Endpoint, tmp_path: Path) -> None:
    done = ask(synthia, server, tmp_path, "-n", "2", "-s", "Be brief.", "--max-tokens", "77", "--stop", "END")
    assert done.returncode == 0, done.stderr
    rows = read_rows(tmp_path)
    assert len(rows) == 16
    asked = {(call.text, call.body["seed"]): call for call in server.calls if call.text != QUESTION}
    assert len(asked) == 16
    for row in rows:
        call = asked[row["messages"][1]["content"], row["seed"] % 2**31]
        assert call.path == "/v1/chat/completions"
        assert call.body == {
            "model": MODEL,
            "messages": row["messages"][:-1],
            "temperature": 0.75,
            "top_p": 1.0,
            "max_tokens": 77,
            "stop": ["END"],
            "seed": row["seed"] % 2**31,
        }
        answer = complete(call).content
        assert isinstance(answer, dict)
        assert row["response"] == answer["choices"][0]["message"]["content"]
        assert row["prompt_tokens"] == answer["usage"]["prompt_tokens"]
        assert (row["completion_tokens"], row["finish_reason"], row["model"]) == (3, "stop", MODEL)
    again = ask(
        synthia, server, tmp_path, "-n", "2", "-s", "Be brief.", "--max-tokens", "77", "--stop", "END"
    )
    assert "already complete" in again.stderr
    assert synthia("verify", "out").returncode == 0
    rerun = synthia("verify", "out", "--rerun", "2")
    assert (rerun.returncode, "an external server" in rerun.stderr) == (2, True)


def test_where_the_server_is_and_how_it_is_asked_is_no_identity(
    synthia: Command, server: Endpoint, tmp_path: Path
) -> None:
    write_questions(tmp_path)
    first = ask(synthia, server, tmp_path)
    assert first.returncode == 0, first.stderr
    before = read_bytes_of_data(tmp_path / "out")
    with Endpoint() as other:
        flags = ("--set", "engine.concurrency=2", "--set", "engine.timeout_seconds=5", "--workers", "2")
        again = synthia("run", tmp_path / "q.jsonl", *FLAGS[:-1], "two", "--base-url", other.url, *flags)
        assert again.returncode == 0, again.stderr
        assert ask(synthia, other, tmp_path, *flags).returncode == 0
        assert ask(synthia, other, tmp_path, "--set", "engine.api=chat").returncode == 0
        assert ask(synthia, other, tmp_path, "--set", "engine.extra_body={a: 1}").returncode == 4
    assert read_bytes_of_data(tmp_path / "two") == before
    assert "URL" in (tmp_path / "out" / "README.md").read_text()
    assert str(server.port) not in (tmp_path / "out" / "README.md").read_text()


def test_a_busy_server_is_given_the_time_that_it_asks_for(
    synthia: Command, server: Endpoint, tmp_path: Path
) -> None:
    waits: list[float] = []

    def behave(call: Call, before: int) -> Reply | None:
        if call.text == "What is 3?" and not before:
            waits.append(call.time)
            return Reply(
                status=429, content={"error": {"message": "slow down"}}, headers={"Retry-After": "2"}
            )
        return None

    server.behave = behave
    done = ask(synthia, server, tmp_path, "--set", "engine.concurrency=1")
    assert done.returncode == 0, done.stderr
    later = [call.time for call in server.calls if call.time > waits[0]]
    assert min(later) - waits[0] >= 2
    assert len(read_rows(tmp_path)) == 8


def test_what_breaks_once_is_asked_again(ask_soon: Ask, server: Endpoint, tmp_path: Path) -> None:
    faults = [
        Reply(status=500, content=b"oh no"),
        Reply(status=503, content={"error": {"message": "loading"}}),
        Reply(content=b'{"choices": [{"mess'),
        Reply(content={"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}),
        Reply(content={"choices": [{"finish_reason": "stop", "message": {"content": "no usage"}}]}),
        Reply(content={"x": "y" * 1000}, hangs_up=True),
        Reply(content=b"<html>", headers={"content-type": "text/html"}),
        Reply(wait_seconds=9.0, content=b"{}"),
    ]
    texts = {f"What is {n}?": fault for n, fault in enumerate(faults)}
    server.behave = lambda call, before: None if before else texts.get(call.text)
    done = ask_soon(server, "--set", "engine.timeout_seconds=6")
    assert done.code == 0, done.err
    assert server.texts == Counter(dict.fromkeys(texts, 2))
    assert len(read_rows(tmp_path)) == 8


def test_what_a_server_cannot_make_fails_alone_and_with_its_code(
    synthia: Command, server: Endpoint, tmp_path: Path
) -> None:
    def behave(call: Call, before: int) -> Reply | None:
        replies = {
            "What is 0?": fail(500, "always"),
            "What is 1?": fail(400, f"no good, says {call.key}"),
            "What is 2?": fail(400, "long", param="input_tokens"),
            "What is 3?": fail(400, "long", code="context_length_exceeded"),
            "What is 4?": fail(400, "dirty", code="content_filter"),
            "What is 5?": complete(call, finish_reason="content_filter"),
            "What is 6?": complete(call, finish_reason="length"),
        }
        return replies.get(call.text)

    server.behave = behave
    done = ask(synthia, server, tmp_path, OPENAI_API_KEY=KEY)
    assert done.returncode == 0, done.stderr
    failed = {row["row_index"]: (row["code"], row["message"]) for row in read_rows(tmp_path, "failed")}
    assert failed == {
        0: ("engine_error", "the server failed at it 4 times: HTTP 500"),
        1: ("refused_by_engine", "the server refuses it (HTTP 400): no good, says ..."),
        2: ("prompt_too_long", "the server refuses it (HTTP 400): long"),
        3: ("prompt_too_long", "the server refuses it (HTTP 400): long"),
        4: ("content_filter", "the server refuses it (HTTP 400): dirty"),
        5: ("content_filter", "the server's content filter ended the answer"),
    }
    assert [row["finish_reason"] for row in read_rows(tmp_path)] == ["length", "stop"]
    assert server.texts["What is 0?"] == 4


def test_a_server_that_fails_at_everything_is_waited_for(
    ask_soon: Ask, server: Endpoint, tmp_path: Path
) -> None:
    """No sample is given up for what is the server's own fault."""
    failures = 0

    def behave(call: Call, before: int) -> Reply | None:
        nonlocal failures
        if call.text == QUESTION and not failures:  # as the engine begins
            return None
        # Not back between a sample's failure and the question whether the server works: that is the sample's.
        failures += failures < 24 or (failures < 100 and call.text == QUESTION)
        if failures >= 24 and call.text != QUESTION:
            failures = 100
        return fail(500, "broken") if failures < 100 else None

    server.behave = behave
    done = ask_soon(server, "--set", "engine.concurrency=1")
    assert done.code == 0, done.err
    assert failures > 24
    assert len(read_rows(tmp_path)) == 8


def test_a_server_that_restarts_costs_waiting_and_nothing_else(ask_soon: Ask, tmp_path: Path) -> None:
    first = Endpoint(lambda call, before: Reply(status=503) if len(first.texts) > 4 else None)
    later: list[Endpoint] = []

    def restart() -> None:
        while len(first.texts) < 5:
            time.sleep(0.02)
        first.stop()
        time.sleep(0.5)
        later.append(Endpoint(port=first.port).__enter__())

    with first:
        thread = threading.Thread(target=restart)
        thread.start()
        done = ask_soon(first, "--set", "engine.concurrency=2")
        thread.join()
    later[0].stop()
    assert done.code == 0, done.err
    assert len(read_rows(tmp_path)) == 8
    made = Counter(call.text for call in first.calls[:5]) + later[0].texts
    assert set(made) >= {f"What is {n}?" for n in range(8)}
    assert all(count == 1 for count in later[0].texts.values())


def test_a_server_that_stays_away_ends_the_run_and_the_next_one_goes_on(
    ask_soon: Ask, tmp_path: Path
) -> None:
    with Endpoint() as whole:
        assert ask_soon(whole).code == 0
    (tmp_path / "out").rename(tmp_path / "whole")
    with Endpoint(lambda call, before: Reply(status=502) if len(server.texts) > 4 else None) as server:
        flags = ("--set", "engine.concurrency=1", "--set", "engine.patience_seconds=0.5")
        gone = ask_soon(server, *flags)
    assert gone.code == 69, gone.err
    assert "HTTP 502" in gone.err
    assert "engine.patience_seconds" in gone.err
    refused = ask_soon(server)
    assert refused.code == 69
    assert "no server answers" in refused.err
    with Endpoint() as back:
        back.max_model_len = 99
        done = ask_soon(back)
    assert "max_model_len 99; the run began with openai tiny, of tests, max_model_len 4096" in done.err
    assert done.code == 0, done.err
    assert sum(back.texts.values()) == 4
    assert read_bytes_of_data(tmp_path / "out") == read_bytes_of_data(tmp_path / "whole")


def test_a_killed_driver_asks_for_no_finished_sample_again(synthia: Command, tmp_path: Path) -> None:
    source = write_questions(tmp_path, 60)
    with Endpoint() as whole:
        assert ask(synthia, whole, tmp_path).returncode == 0
    (tmp_path / "out").rename(tmp_path / "whole")
    with Endpoint(lambda call, before: Reply(**{**vars(complete(call)), "wait_seconds": 0.1})) as server:
        command = command_of("run", source, *FLAGS, "--base-url", server.url, "--set", "engine.concurrency=4")
        for count in (12, 30):
            process = subprocess.Popen(
                command, cwd=tmp_path, env=make_environment(), stderr=subprocess.DEVNULL
            )
            while sum(server.texts.values()) < count:
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.wait()
        journaled = open_run(tmp_path / "out").statistics().finished
        assert journaled > 0
        done = ask(synthia, server, tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    assert f'"made_now": {60 - journaled}' in done.stdout
    # In flight at a kill: at most what a worker holds.
    assert sum(server.texts.values()) <= 60 + 2 * 6
    assert read_bytes_of_data(tmp_path / "out") == read_bytes_of_data(tmp_path / "whole")


def test_a_conversation_is_played_and_its_later_turns_know_the_answers(
    synthia: Command, server: Endpoint, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "q.jsonl", [{"turns": ["one", "two", "too long"]}, {"turns": ["alone"]}])
    server.behave = lambda call, before: fail(400, "x", param="input_tokens") if "long" in call.text else None
    done = ask(synthia, server, tmp_path, "-s", "none", "--on-overflow", "stop")
    assert done.returncode == 0, done.stderr
    first, second = read_rows(tmp_path)
    assert [turn["role"] for turn in first["messages"]] == ["user", "assistant", "user", "assistant"]
    assert first["finish_reason"] == "context_overflow"
    assert second["finish_reason"] == "stop"
    asked = next(call for call in server.calls if call.text == "two")
    assert asked.body["messages"] == first["messages"][:-1]
    failing = ask(synthia, server, tmp_path, "-s", "none", "-o", "failing")
    assert failing.returncode == 0, failing.stderr
    (failed,) = pq.read_table(tmp_path / "failing" / "failed").to_pylist()
    assert failed["code"] == "context_overflow"
    assert failed["message"].startswith("turn 3 of 3: ")


def test_what_a_server_tells_apart_as_reasoning_has_its_column(
    synthia: Command, server: Endpoint, tmp_path: Path
) -> None:
    def behave(call: Call, before: int) -> Reply:
        name = "reasoning" if call.text == "What is 0?" else "reasoning_content"
        return complete(call, message={"content": "So.", name: f"Hm, {call.text}"})

    server.behave = behave
    assert ask(synthia, server, tmp_path).returncode == 0
    assert [row["reasoning"] for row in read_rows(tmp_path)] == [f"Hm, What is {n}?" for n in range(8)]
    assert {row["response"] for row in read_rows(tmp_path)} == {"So."}


def test_prompts_that_the_job_writes_go_to_completions_as_they_are(
    synthia: Command, server: Endpoint, tmp_path: Path
) -> None:
    flags = ("--set", "prompt_format=synthia", "-s", "Be brief.")
    done = ask(synthia, server, tmp_path, *flags)
    assert done.returncode == 0, done.stderr
    calls = [call for call in server.calls if call.text != QUESTION]
    assert {call.path for call in calls} == {"/v1/completions"}
    assert "SYSTEM: Be brief.\nUSER: What is 3?\nASSISTANT:" in server.texts
    assert calls[0].body["stop"] == ["USER:"]
    assert all(row["response"].startswith("Answer ") for row in read_rows(tmp_path))
    refused = ask(synthia, server, tmp_path, *flags, "--set", "engine.api=chat", "-o", "other")
    assert refused.returncode == 2
    assert "prompt_format=chat" in refused.stderr


def test_sampling_beyond_openais_is_sent_where_that_is_said_and_never_left_out(
    synthia: Command, server: Endpoint, tmp_path: Path
) -> None:
    refused = ask(synthia, server, tmp_path, "--top-k", "40")
    assert refused.returncode == 2
    assert "sampling.top_k=40 (flag)" in refused.stderr
    assert "engine.extra_sampling=true" in refused.stderr
    more = ("--set", "engine.extra_sampling=true", "--set", "engine.extra_body={reasoning_effort: low}")
    more += (
        "--set",
        "sampling.presence_penalty=0.5",
        "--set",
        "engine.max_tokens_field=max_completion_tokens",
    )
    done = ask(synthia, server, tmp_path, "--top-k", "40", *more)
    assert done.returncode == 0, done.stderr
    body = server.calls[-1].body
    told = {"top_k": 40, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.5}
    assert {name: body[name] for name in told} == told
    assert body["reasoning_effort"] == "low"
    assert body["max_completion_tokens"] == 1024
    assert "max_tokens" not in body


def test_what_answers_must_be_is_sent_and_judged(synthia: Command, server: Endpoint, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}')
    server.behave = lambda call, before: complete(
        call, message={"content": "no JSON" if call.text == "What is 3?" else '{"n": 1}'}
    )
    done = ask(synthia, server, tmp_path, "--json-schema", schema)
    assert done.returncode == 0, done.stderr
    asked = server.calls[-1].body["response_format"]
    assert asked["json_schema"]["schema"]["required"] == ["n"]
    assert asked["json_schema"]["strict"] is True
    (failed,) = read_rows(tmp_path, "failed")
    assert (failed["row_index"], failed["code"]) == (3, "structured_output_invalid")
    refused = ask(synthia, server, tmp_path, "--regex", "[0-9]+", "-o", "other")
    assert (refused.returncode, "structured.regex: OpenAI's API" in refused.stderr) == (2, True)
    server.behave = lambda call, before: complete(call, message={"content": "12"})
    extra = ("--regex", "[0-9]+", "--set", "engine.extra_sampling=true", "-o", "other")
    assert ask(synthia, server, tmp_path, *extra).returncode == 0
    assert server.calls[-1].body["structured_outputs"] == {"regex": "[0-9]+"}


def test_a_rows_own_sampling_is_sent_or_fails_that_row(
    synthia: Command, server: Endpoint, tmp_path: Path
) -> None:
    said = [{"temperature": 0, "max_tokens": 5}, {"stop": ["X"]}, {"top_k": 3}, None]
    rows = [{"question": f"What is {n}?", "s": one} for n, one in enumerate(said)]
    write_jsonl(tmp_path / "q.jsonl", rows)
    done = ask(synthia, server, tmp_path, "--sampling-column", "s")
    assert done.returncode == 0, done.stderr
    bodies = {call.text: call.body for call in server.calls}
    assert (bodies["What is 0?"]["temperature"], bodies["What is 0?"]["max_tokens"]) == (0, 5)
    assert bodies["What is 1?"]["stop"] == ["X"]
    assert bodies["What is 3?"]["temperature"] == 0.75
    (failed,) = read_rows(tmp_path, "failed")
    assert (failed["row_index"], failed["code"]) == (2, "refused_by_engine")
    assert "sampling.top_k: OpenAI's API has no such field" in failed["message"]


def test_a_key_reaches_the_server_and_no_file(synthia: Command, tmp_path: Path) -> None:
    write_questions(tmp_path)
    with Endpoint(key=KEY) as server:
        refused = ask(synthia, server, tmp_path)
        assert refused.returncode == 2
        assert "OPENAI_API_KEY" in refused.stderr
        wrong = ask(synthia, server, tmp_path, OPENAI_API_KEY="sk-wrong-77")
        assert (wrong.returncode, "sk-wrong-77" in wrong.stderr) == (2, False)
        done = ask(synthia, server, tmp_path, OPENAI_API_KEY=KEY)
        assert done.returncode == 0, done.stderr
        named = ask(synthia, server, tmp_path, "-o", "named", "--set", "engine.api_key=${MINE}", MINE=KEY)
        assert named.returncode == 0, named.stderr
        written = ask(synthia, server, tmp_path, "-o", "written", "--set", f"engine.api_key={KEY}")
        assert written.returncode == 2
        assert "not written out" in written.stderr
        missing = ask(synthia, server, tmp_path, "-o", "missing", "--set", "engine.api_key=${MINE}")
        assert "the environment variable MINE is not set" in missing.stderr
        planned = synthia(
            "plan", tmp_path / "q.jsonl", *FLAGS, "--base-url", server.url, "--all", OPENAI_API_KEY=KEY
        )
        assert "prompt bytes: " in planned.stdout
    told = [
        one for done in (refused, wrong, done, named, written, planned) for one in (done.stdout, done.stderr)
    ]
    assert KEY not in "".join(told)
    held = [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert held == []


def test_what_cannot_be_asked_is_refused_before_anything_is(
    synthia: Command, server: Endpoint, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "q.jsonl", [{"question": "What is 1?", "tools": []}])

    def refuse(*flags: str) -> str:
        done = ask(synthia, server, tmp_path, *flags)
        assert done.returncode == 2, done.stderr
        assert not (tmp_path / "out").exists()
        return str(done.stderr)

    assert "--determinism fast" in refuse("--determinism", "strict")
    assert "expected an address such as" in refuse("--base-url", "localhost:8000")
    assert "hunter2" not in refuse("--base-url", "http://me:hunter2@127.0.0.1/v1")
    assert "engine.concurency: Extra inputs" in refuse("--set", "engine.concurency=3")
    assert "model.dtype does nothing" in refuse("--set", "model.dtype=float16")
    assert "lora.adapters does nothing" in refuse("--lora", "a=b")
    assert "use fail or stop" in refuse("--on-overflow", "truncate-oldest")
    assert "engine.api=completions: the job sets no prompt format" in refuse(
        "--set", "engine.api=completions"
    )
    assert "temperature is set by the job" in refuse("--set", "engine.extra_body={temperature: 1}")
    assert "response_format is set by" in refuse("--set", "engine.extra_body={response_format: {}}")
    assert "not read from a server" in refuse("--logprobs", "2", "--set", "engine.extra_sampling=true")
    assert "answers with calls" in refuse("--tools-column", "tools")
    done = synthia("run", tmp_path / "q.jsonl", *FLAGS)
    assert "--base-url" in done.stderr
    assert server.calls == []


def test_what_a_server_will_not_do_is_said_before_any_sample_is_asked_for(
    synthia: Command, server: Endpoint, tmp_path: Path
) -> None:
    other = ask(synthia, server, tmp_path, "--model", "other", "-o", "a")
    assert (other.returncode, "it lists tiny" in other.stderr) == (2, True), other.stderr
    short = ask(synthia, server, tmp_path, "--base-url", server.url.removesuffix("/v1"), "-o", "b")
    assert (short.returncode, "usually ends with /v1" in short.stderr) == (2, True), short.stderr
    server.behave = lambda call, before: fail(400, "Unrecognized request argument supplied: top_k")
    extra = ask(synthia, server, tmp_path, "--set", "engine.extra_sampling=true", "-o", "c")
    assert extra.returncode == 2
    assert "Unrecognized request argument supplied: top_k" in extra.stderr
    assert server.texts == Counter()


def test_a_missing_client_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_settings, "find_spec", lambda name: None)
    job = {"input": {"path": write_questions(tmp_path)}, "determinism": "fast", "model": {"name": MODEL}}
    job["engine"] = {"kind": "openai", "base_url": "http://127.0.0.1:1/v1"}
    said = Layer(origin="test", values=Job.model_validate(job).model_dump(exclude_unset=True))
    with pytest.raises(UsageError, match=r"synthia-batch\[openai\]"):
        resolve_job([said])


def test_resolving_a_job_needs_no_server_and_looks_for_no_model(synthia: Command, tmp_path: Path) -> None:
    flags = (*FLAGS[:3], "some-org/some-70b", *FLAGS[4:], "--base-url", "http://127.0.0.1:9/v1")
    planned = synthia("plan", write_questions(tmp_path), *flags, HF_HUB_OFFLINE="1")
    assert planned.returncode == 0, planned.stderr
    assert "the server writes prompts" in planned.stdout
    assert "(the endpoint engine)" in planned.stdout
    shown = synthia("preview", tmp_path / "q.jsonl", *flags, "-n", "1")
    assert "only the server knows the tokens" in shown.stdout
    assert not os.path.exists(tmp_path / "out")


def test_ray_workers_ask_a_server_too(synthia: Command, server: Endpoint, tmp_path: Path) -> None:
    done = ask(synthia, server, tmp_path, "--pool", "ray", "--workers", "2", OPENAI_API_KEY=KEY)
    assert done.returncode == 0, done.stderr
    assert server.texts == Counter({f"What is {n}?": 1 for n in range(8)})
    assert {call.key for call in server.calls} == {KEY}
