"""retry makes failed samples again, keeps every other byte, and survives being killed anywhere."""

import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import Command, read_bytes_of_data, read_call_log, write_jsonl
from inside import Killed, call, dying_at, snapshot

from synthia_batch.core.checksummed_json import encode_checksummed
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.lock import RunLock
from synthia_batch.storage.manifest import read_manifest
from synthia_batch.storage.saved_job import read_job

LONG = 7  # the row whose prompt fits no engine: it fails however often it is tried
ROWS, SHARD_ROWS = 110, 100
"""Two shards, which are made and published hundreds of times here."""
FLAGS = (
    "--engine", "scripted", "--pool", "local", "-q", "-s", "synthia", "-s", "none", "-n", "2",
    "--set", "model.max_model_len=900", "--set", "engine.fail_every=5",
    "--set", "engine.fail_while_missing=mended",
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds "failing", a complete run with failed samples, and "whole", the same job without a cause."""
    home = tmp_path_factory.mktemp("retry")
    questions = [f"What is {n} squared?" for n in range(ROWS)]
    questions[LONG] = "long " * 300
    write_jsonl(home / "q.jsonl", [{"question": question} for question in questions])
    return home


@pytest.fixture
def home(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Path:
    monkeypatch.setattr("synthia_batch.job.plan.ROWS_STEP", SHARD_ROWS)
    monkeypatch.chdir(finished)
    if not (finished / "whole").exists():
        assert call(capsys, "run", "q.jsonl", *FLAGS, "-o", "failing").code == 0
        (finished / "mended").touch()
        assert call(capsys, "run", "q.jsonl", *FLAGS, "-o", "whole").code == 0
        (finished / "mended").unlink()
    (finished / "mended").unlink(missing_ok=True)
    home = tmp_path / "home"
    shutil.copytree(finished, home)
    # What the run keeps of its job names the input where it was: that is what is read here, too.
    monkeypatch.chdir(home)
    return home


@pytest.fixture
def mended(finished: Path) -> Path:
    """The file whose absence is the cause of failures: where the run began, which it keeps."""
    return finished / "mended"


def test_failed_samples_are_made_again_and_all_others_keep_their_bytes(
    home: Path, mended: Path, capsys: Any
) -> None:
    mended.touch()
    log = home / "calls"
    answer = call(capsys, "retry", "failing", "--set", f"engine.call_log={log}", "--json")
    assert answer.code == 0, answer
    told = json.loads(answer.out)
    assert (told["failed"], told["state"]) == (4, "complete")
    assert told["made_now"] == len(range(0, 4 * ROWS, 5)) + 3, "and the three others that are too long"
    assert set(read_call_log(log)) == set(range(0, 4 * ROWS, 5)) - set(range(4 * LONG, 4 * LONG + 4))
    assert read_bytes_of_data(home / "failing") == read_bytes_of_data(home / "whole")
    assert call(capsys, "verify", "failing", "-q").code == 0


def test_only_those_with_the_code_are_made_again(home: Path, mended: Path, capsys: Any) -> None:
    mended.touch()
    answer = call(capsys, "retry", "failing", "--code", "scripted_failure", "--json")
    assert json.loads(answer.out)["made_now"] == len(range(0, 4 * ROWS, 5)) - 1
    assert call(capsys, "retry", "failing", "--code", "scripted_failure").code == 0


def test_a_cause_that_is_still_there_gives_the_same_bytes_again(home: Path, capsys: Any) -> None:
    before = read_bytes_of_data(home / "failing")
    assert call(capsys, "retry", "failing", "-q").code == 0
    assert read_bytes_of_data(home / "failing") == before


def test_where_nothing_matches_nothing_is_touched(home: Path, capsys: Any) -> None:
    before = snapshot(home)
    answer = call(capsys, "retry", "failing", "--code", "engine_died")
    assert (answer.code, answer.out) == (0, "failing\n")
    assert "no samples with the code engine_died; nothing was changed" in answer.err
    assert snapshot(home) == before


def test_another_identity_is_refused_by_field(home: Path, capsys: Any) -> None:
    before = snapshot(home)
    answer = call(capsys, "retry", "failing", "--set", "seed=3", "--set", "sampling.top_k=1")
    assert answer.code == 4
    assert "seed: 0 before, 3 now" in answer.err
    assert "sampling.top_k: 50 before, 1 now" in answer.err
    assert snapshot(home) == before


def test_it_works_from_anywhere_and_for_a_run_that_was_moved(
    home: Path, mended: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mended.touch()
    (home / "elsewhere").mkdir()
    monkeypatch.chdir(home / "elsewhere")
    shutil.move(home / "failing", home / "elsewhere" / "moved")
    assert call(capsys, "retry", "moved", "-q").code == 0
    assert read_bytes_of_data(home / "elsewhere" / "moved") == read_bytes_of_data(home / "whole")


def test_no_run_and_no_job_are_usage_errors(home: Path, capsys: Any) -> None:
    assert "not a run directory" in call(capsys, "retry", ".").err
    (home / "failing/.synthia/job.json").unlink()
    answer = call(capsys, "retry", "failing")
    assert (answer.code, "has no saved job" in answer.err) == (2, True)


@pytest.mark.parametrize("command", ["run", "retry"])
def test_a_retry_killed_anywhere_is_completed_by_the_next_command(
    home: Path, mended: Path, capsys: Any, command: str
) -> None:
    mended.touch()
    shutil.copytree(home / "failing", home / "before")
    untouched = read_manifest(home / "before/manifest.json")
    out = home / "failing"
    again = ("retry", "failing") if command == "retry" else ("run", "q.jsonl", *FLAGS, "-o", "failing")
    step = 5 if command == "retry" else 7
    for number in range(1, 1000, step):
        shutil.rmtree(out)
        shutil.copytree(home / "before", out)
        try:
            with dying_at(number):
                call(capsys, "retry", "failing", "--code", "scripted_failure", "-q")
        except Killed:
            left = read_manifest(out / "manifest.json")
            assert call(capsys, *again).code == 0
            # Killed as it began, it left the manifest of before; in its very last call, one of its own.
            is_untouched = left == untouched
            wanted = home / ("before" if is_untouched and command == "run" else "whole")
            found = read_bytes_of_data(out)
            # Killed before a shard was opened again, that shard keeps its failures under `run`.
            if command == "retry" or left is not None:
                assert found == read_bytes_of_data(wanted)
            assert call(capsys, "verify", "failing", "-q").code == 0
        else:
            assert number > 20
            return
    pytest.fail("the retry has no end")


def test_a_retry_killed_as_it_begins_leaves_a_complete_run_that_the_next_one_tidies(
    home: Path, capsys: Any
) -> None:
    out = home / "failing"
    shutil.copytree(out, home / "before")
    left = set()
    for number in range(1, 100):
        shutil.rmtree(out)
        shutil.copytree(home / "before", out)
        with pytest.raises(Killed), dying_at(number):
            call(capsys, "retry", "failing", "-q")
        if read_manifest(out / "manifest.json") is None:
            break
        unfinished = list_unfinished(out)
        left |= set(unfinished)
        verified = call(capsys, "verify", "failing", "-q")
        assert verified.code == 0, verified
        assert ("1 file left over from a crash; the next run cleans up" in verified.out) == bool(unfinished)
        assert call(capsys, "run", "q.jsonl", *FLAGS, "-o", "failing").code == 0
        assert not list_unfinished(out)
        assert read_bytes_of_data(out) == read_bytes_of_data(home / "before")
    assert left >= {".owner.json.tmp"}


def list_unfinished(run_directory: Path) -> list[str]:
    return [path.name for path in (run_directory / ".synthia").glob(".*.tmp")]


def test_a_complete_run_without_its_job_keeps_it_anew_as_it_is_said_next(home: Path, capsys: Any) -> None:
    out = home / "failing"
    (out / ".synthia/job.json").unlink()
    before = snapshot(out)
    assert "run the command that began it once, then retry" in call(capsys, "retry", "failing").err
    assert call(capsys, "run", "q.jsonl", *FLAGS, "-o", "failing").code == 0
    kept = read_job(out / ".synthia/job.json", out)
    assert kept is not None
    assert kept.values["input"]["path"] == str(home / "q.jsonl")
    assert {**snapshot(out), ".synthia/job.json": b""} == {**before, ".synthia/job.json": b""}
    assert call(capsys, "retry", "failing", "-q").code == 0


def test_what_another_process_is_writing_in_a_complete_run_is_left_to_it(home: Path, capsys: Any) -> None:
    out = home / "failing"
    (out / ".synthia/.owner.json.tmp").touch()
    lock = RunLock(RunDir(out), datetime.now().astimezone())
    lock.take()
    assert call(capsys, "run", "q.jsonl", *FLAGS, "-o", "failing").code == 0
    assert list_unfinished(out) == [".owner.json.tmp"]
    lock.release()
    assert call(capsys, "run", "q.jsonl", *FLAGS, "-o", "failing").code == 0
    assert not list_unfinished(out)


def answer_otherwise(run_directory: Path) -> bytes:
    """Have the run's record of its canaries differ from what the engine answers; return it as it was."""
    path = run_directory / ".synthia/canary.json"
    before = path.read_bytes()
    path.write_bytes(encode_checksummed({"texts": "another", "bits": "", "by": {"engine": "another"}}))
    return before


def read_all_but_history(run_directory: Path) -> dict[str, bytes]:
    ours = (".synthia/owner.json", ".synthia/events.jsonl", ".synthia/logs", ".synthia/canary.json")
    return {name: content for name, content in snapshot(run_directory).items() if not name.startswith(ours)}


def test_a_retry_that_is_refused_leaves_the_run_complete_as_it_was(
    home: Path, mended: Path, capsys: Any
) -> None:
    mended.touch()
    out = home / "failing"
    canary = answer_otherwise(out)
    before = read_all_but_history(out)
    answer = call(capsys, "retry", "failing", "--set", "engine.max_num_seqs=7")
    assert answer.code == 4
    assert "do not answer the canary prompts alike" in answer.err
    assert "no sample was regenerated; the run is complete as it was" in answer.err
    assert read_all_but_history(out) == before, "nor is the refused setting kept for the next retry"
    (out / ".synthia/canary.json").write_bytes(canary)
    assert call(capsys, "verify", "failing", "-q").code == 0
    assert call(capsys, "retry", "failing", "-q").code == 0
    assert read_bytes_of_data(out) == read_bytes_of_data(home / "whole")


def test_a_refused_retry_killed_anywhere_is_completed_by_the_next_run(
    home: Path, mended: Path, capsys: Any
) -> None:
    mended.touch()
    out = home / "failing"
    canary = answer_otherwise(out)
    shutil.copytree(out, home / "before")
    for number in range(1, 1000, 4):
        shutil.rmtree(out)
        shutil.copytree(home / "before", out)
        try:
            with dying_at(number):
                refused = call(capsys, "retry", "failing", "--code", "scripted_failure", "-q")
        except Killed:
            (out / ".synthia/canary.json").write_bytes(canary)
            assert call(capsys, "run", "q.jsonl", *FLAGS, "-o", "failing").code == 0
            assert read_manifest(out / "manifest.json") is not None
            assert call(capsys, "verify", "failing", "-q").code == 0
        else:
            assert refused.code == 4
            assert number > 20
            return
    pytest.fail("the retry has no end")


def test_the_job_that_is_kept_names_its_files_from_anywhere(home: Path, finished: Path) -> None:
    kept = read_job(home / "failing/.synthia/job.json", home)
    assert kept is not None
    assert kept.values["engine"]["fail_while_missing"] == str(finished / "mended")
    assert kept.values["input"]["path"] == str(finished / "q.jsonl")


def test_a_retry_of_an_interrupted_run_makes_the_failed_samples_alone(
    tmp_path: Path, synthia: Command
) -> None:
    write_jsonl(tmp_path / "q.jsonl", [{"question": f"What is {n} squared?"} for n in range(40)])
    job = (
        "--engine", "scripted", "--pool", "local", "--set", "engine.fail_every=4",
        "--set", "engine.fail_while_missing=mended", "-o", "out",
    )  # fmt: skip
    assert synthia("plan", "q.jsonl", *job, "--probe", "8", "--json").returncode == 0
    failed = len(synthia("failed", "out").stdout.splitlines())
    assert 0 < failed < 8
    (tmp_path / "mended").touch()
    retried = synthia("retry", "out", "--json")
    assert retried.returncode == 0, retried.stderr
    result = json.loads(retried.stdout)
    assert (result["made_now"], result["finished"], result["failed"]) == (failed, 8, 0)
    assert "not complete: 8 of 40 samples finished" in retried.stderr
    assert not (tmp_path / "out/manifest.json").exists()
    rest = synthia("run", "q.jsonl", *job, "--json")
    assert json.loads(rest.stdout)["made_now"] == 32
