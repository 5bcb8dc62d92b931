"""`plan --probe`: some samples made first, and what they say of the whole job."""

import json
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Command, command_of, make_environment, read_bytes_of_data, read_call_log, write_jsonl
from inside import Answer, call, snapshot

from synthia_batch.job.loading.command_line import turn_into_run
from synthia_batch.storage.events import read_events

SCRIPTED = ("--engine", "scripted", "--pool", "local")
ROWS = 400


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Any:
    """Run a command on scripted engines in this process and in `tmp_path`, with a call log `calls`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("synthia_batch.job.plan.ROWS_STEP", 50)
    write_jsonl(tmp_path / "q.jsonl", [{"question": f"What is {n} squared?"} for n in range(ROWS)])

    def run(command: str, *flags: str | Path) -> Answer:
        log = ("--set", f"engine.call_log={tmp_path / 'calls'}")
        return call(capsys, command, "q.jsonl", *flags, *SCRIPTED, *log)

    return run


def read_probe(answer: Answer) -> dict[str, Any]:
    assert answer.code == 0, answer.err
    found: dict[str, Any] = json.loads(answer.out)["probe"]
    return found


def test_a_probe_is_made_once_and_the_run_goes_on_with_it(inside: Any, tmp_path: Path) -> None:
    flags = ("-s", "synthia", "-s", "none", "-o", "out")
    found = read_probe(inside("plan", *flags, "--probe", "60", "--json"))
    probed = read_call_log(tmp_path / "calls")
    assert len(set(probed)) == len(probed) == found["known"] == found["made"] == 60
    assert len({ordinal * 8 // (2 * ROWS) for ordinal in probed}) == 8, "from every eighth of the job"
    assert 15 < sum(ordinal % 2 for ordinal in probed) < 45, "of both system messages"
    assert not (tmp_path / "out" / "manifest.json").exists()
    done = inside("run", *flags)
    assert done.code == 0, done.err
    assert "resuming out: 60 of 800 samples are done" in done.err
    assert sorted(read_call_log(tmp_path / "calls")) == list(range(2 * ROWS))
    assert inside("run", *flags[:-1], "whole").code == 0
    assert read_bytes_of_data(tmp_path / "out") == read_bytes_of_data(tmp_path / "whole")


def test_the_numbers_are_those_of_the_samples(inside: Any, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    flags = ("-o", "out", "--set", "engine.fail_every=4", "--max-tokens", "20")
    found = read_probe(inside("plan", *flags, "--probe", "100", "--json"))
    probed = read_call_log(tmp_path / "calls")
    assert inside("run", *flags).code == 0
    rows = pq.read_table(tmp_path / "out" / "data").to_pylist()
    made = [row for row in rows if row["row_index"] in probed]
    failed = sum(ordinal % 4 == 0 for ordinal in probed)
    assert found["failures"] == {"scripted_failure": failed}
    lengths = found["lengths"]
    assert lengths["samples"] == len(made) == 100 - failed
    assert lengths["truncated"] == sum(row["finish_reason"] == "length" for row in made) / len(made)
    assert lengths["quantiles"]["longest"] == max(row["completion_tokens"] for row in made) == 20
    speed = found["speed"]
    assert (speed["samples"], speed["tokens"]) == (100, sum(row["completion_tokens"] for row in made))
    assert found["whole"]["samples"] == ROWS
    assert found["left"]["samples"] == ROWS - 100
    for part in (found["whole"], found["left"]):
        assert all(0 < part[name]["low"] <= part[name]["high"] for name in ("tokens", "seconds", "hours"))
    total = sum(row["completion_tokens"] for row in rows)
    assert found["whole"]["tokens"]["low"] < total < found["whole"]["tokens"]["high"]
    size = sum(path.stat().st_size for path in (tmp_path / "out" / "data").iterdir())
    assert size / 2 < found["data_bytes"] < size * 2


def test_a_second_probe_tells_what_is_known_and_a_larger_one_makes_more(inside: Any, tmp_path: Path) -> None:
    flags = ("-o", "out", "--json")
    first = read_probe(inside("plan", *flags, "--probe", "40"))
    before = snapshot(tmp_path / "out")
    again = read_probe(inside("plan", *flags, "--probe", "40"))
    assert again == {**first, "made": 0}
    assert snapshot(tmp_path / "out") == before, "nothing to make is no attempt"
    assert read_probe(inside("plan", *flags, "--probe", "20"))["made"] == 0
    more = read_probe(inside("plan", *flags, "--probe", "50"))
    assert (more["known"], more["made"]) == (50, 10)
    calls = read_call_log(tmp_path / "calls")
    assert len(calls) == len(set(calls)) == 50


def test_what_a_run_has_made_is_not_made_for_a_probe(inside: Any, tmp_path: Path) -> None:
    assert inside("run", "-o", "out").code == 0
    (tmp_path / "calls").unlink()
    before = snapshot(tmp_path / "out")
    found = inside("plan", "-o", "out", "--probe", "30")
    assert found.code == 0, found.err
    assert "probe: 30 samples from across the job, 0 of them generated now; the run is complete" in found.out
    assert re.search(r"speed: \d+ tokens/s, .* over 400 samples", found.out), "the run's own"
    assert "\nleft: " not in found.out
    assert snapshot(tmp_path / "out") == before
    assert not (tmp_path / "calls").exists()


def test_a_probe_of_everything_completes_the_run(inside: Any, tmp_path: Path) -> None:
    found = inside("plan", "-o", "out", "--probe", "100000")
    assert found.code == 0, found.err
    assert "400 samples from across the job, 400 of them generated now; the run is complete" in found.out
    assert "already complete" in inside("run", "-o", "out").err
    assert inside("run", "-o", "whole").code == 0
    assert read_bytes_of_data(tmp_path / "out") == read_bytes_of_data(tmp_path / "whole")


def test_a_probe_of_failures_alone_exits_as_a_run_of_them(inside: Any) -> None:
    found = inside("plan", "-o", "out", "--probe", "5", "--set", "engine.fail_every=1")
    assert (found.code, "failures: 5 of 5, scripted_failure 5" in found.out) == (3, True), found.out


def test_conversations_are_probed_whole(inside: Any, tmp_path: Path) -> None:
    write_jsonl(
        tmp_path / "q.jsonl",
        [{"turns": [f"Row {n}, turn {k}?" for k in range(1 + n % 3)]} for n in range(60)],
    )
    found = read_probe(inside("plan", "-o", "out", "--probe", "20", "--json"))
    turns = (tmp_path / "calls").read_text().split()
    assert found["known"] == 20
    assert len({turn.partition(".")[0] for turn in turns}) == 20
    assert found["speed"]["tokens"] == round(found["lengths"]["mean"] * 20)
    assert inside("run", "-o", "out").code == 0
    assert len((tmp_path / "calls").read_text().split()) == 60 * 2, "each turn once"
    assert inside("run", "-o", "whole").code == 0
    assert read_bytes_of_data(tmp_path / "out") == read_bytes_of_data(tmp_path / "whole")


def test_another_job_in_its_directory_is_refused(inside: Any, tmp_path: Path) -> None:
    assert inside("plan", "-o", "out", "--probe", "5").code == 0
    before = snapshot(tmp_path / "out")
    refused = inside("plan", "-o", "out", "--probe", "5", "--temperature", "0.1")
    assert (refused.code, "belongs to another job" in refused.err) == (4, True)
    assert snapshot(tmp_path / "out") == before


def test_status_and_verify_know_a_probed_directory(inside: Any, tmp_path: Path, capsys: Any) -> None:
    assert inside("plan", "-o", "out", "--probe", "70").code == 0
    status = json.loads(call(capsys, "status", "out", "--json").out)
    assert (status["state"], status["finished"], status["samples"]) == ("interrupted", 70, ROWS)
    assert status["next"].startswith("synthia-batch run q.jsonl -o out --engine scripted"), (
        "not the probe again"
    )
    assert "--probe" not in status["next"]
    assert call(capsys, "verify", "out").code == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_drains_a_probe(synthia: Command, tmp_path: Path, number: int, code: int) -> None:
    write_jsonl(tmp_path / "q.jsonl", [{"question": f"What is {n} squared?"} for n in range(ROWS)])
    log = ("--set", f"engine.call_log={tmp_path / 'calls'}")
    slow = ("--set", "engine.latency_ms=200", "--set", "engine.max_num_seqs=2")
    command = command_of("plan", "q.jsonl", *SCRIPTED, *log, *slow, "-o", "out", "--probe", "300")
    probe = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=make_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while len(read_call_log(tmp_path / "calls")) < 20:
        assert probe.poll() is None, probe.communicate()
        time.sleep(0.01)
    busy = synthia("plan", "q.jsonl", *SCRIPTED, "-o", "out", "--probe", "3")
    assert (busy.returncode, f"is in use by pid {probe.pid}" in busy.stderr) == (4, True)
    preview = synthia("preview", "q.jsonl", *SCRIPTED, "-o", "out", "--answers")
    assert (preview.returncode, f"is in use by pid {probe.pid}" in preview.stderr) == (4, True)
    probe.send_signal(number)
    out, err = probe.communicate(timeout=60)
    assert probe.returncode == code, err
    assert re.search(r"drained on .*: \d+ of 300 samples are done", err)
    assert "resume with: synthia-batch plan q.jsonl" in err
    assert "whole job" not in out
    calls = read_call_log(tmp_path / "calls")
    done = synthia("run", "q.jsonl", *SCRIPTED, *log, "-o", "out")
    assert f"resuming out: {len(calls)} of {ROWS} samples are done" in done.stderr
    assert sorted(read_call_log(tmp_path / "calls")) == list(range(ROWS))


def test_a_deadline_drains_a_probe(synthia: Command, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "q.jsonl", [{"question": f"What is {n} squared?"} for n in range(ROWS)])
    slow = ("--set", "engine.latency_ms=50", "--set", "engine.max_num_seqs=1", "--deadline", "3s")
    drained = synthia("plan", "q.jsonl", *SCRIPTED, *slow, "-o", "out", "--probe", "300", "--json")
    assert drained.returncode == 75, drained.stderr
    assert "drained on the deadline" in drained.stderr
    assert drained.stdout == "", "no half an answer for a program"


def test_the_speed_of_an_attempt_is_in_its_history(inside: Any, tmp_path: Path) -> None:
    flags = ("--set", "engine.latency_ms=30", "--set", "engine.max_num_seqs=4", "-o", "out")
    assert inside("plan", *flags, "--probe", "40").code == 0
    (event,) = (
        e for e in read_events(tmp_path / "out/.synthia/events.jsonl") if e["kind"] == "speed_measured"
    )
    assert event["samples"] == 40
    assert event["seconds"] >= 40 / 4 * 0.030 * 0.9, "ten steps of 30 ms"
    assert 0.5 < event["occupancy"] <= 1
    assert event["engines"] == 1


@pytest.mark.parametrize(
    ("typed", "run"),
    [
        ("plan q.jsonl --probe 200 -n 4 --json", "run q.jsonl -n 4"),
        ("plan --probe=200 -j job.yaml -o out", "run -j job.yaml -o out"),
        (
            "preview q.jsonl -n 3 --answers --full -s none --num-samples 2",
            "run q.jsonl -s none --num-samples 2",
        ),
        ("preview -n3 --rows=4 --rows 5 --random q.jsonl -q", "run q.jsonl -q"),
    ],
)
def test_what_began_early_is_told_as_the_run(typed: str, run: str) -> None:
    assert turn_into_run(["synthia-batch", *typed.split()]) == ["synthia-batch", *run.split()]


def test_more_failures_than_are_allowed_are_told_and_do_not_end_a_probe(inside: Any) -> None:
    flags = ("-o", "out", "--set", "engine.fail_every=4", "--max-failures", "5", "--probe", "100")
    found = inside("plan", *flags)
    assert found.code == 0, found.err
    assert re.search(r"failures: \d\d of 100, scripted_failure \d\d", found.out)
