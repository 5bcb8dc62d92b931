"""The one canary answer of a run: kept by the first worker, held against every other."""

import dataclasses
from pathlib import Path

import pytest

from synthia_batch.errors import DeterminismBroken
from synthia_batch.runner.directory.canary_record import check_canary, compare_canary
from synthia_batch.storage.layout import RunDir
from synthia_batch.workers.canary import CanaryAnswer
from synthia_batch.workers.engine import EngineFacts
from synthia_batch.workers.pools.base import WorkerReady

FACTS = EngineFacts(
    engine="vllm", version="0.32.0", device="x86_64 AMD", capacity=4, max_model_len=100,
    numerics={"torch": "2.13.0", "threads": "1"},
)  # fmt: skip
ANSWER = CanaryAnswer(texts="ab", bits="01")
OTHER = CanaryAnswer(texts="cd", bits="02")
READY = WorkerReady(worker=0, epoch=1, facts=FACTS, canary=ANSWER)


def make_run_dir(path: Path) -> RunDir:
    run_dir = RunDir(path / "out")
    run_dir.create()
    return run_dir


def test_the_first_answer_is_kept_and_the_same_one_passes(tmp_path: Path) -> None:
    run_dir = make_run_dir(tmp_path)
    check_canary(run_dir, READY)
    kept = run_dir.canary.read_bytes()
    check_canary(run_dir, dataclasses.replace(READY, worker=1))
    assert run_dir.canary.read_bytes() == kept


def test_another_answer_is_refused_with_what_differs_field_by_field(tmp_path: Path) -> None:
    run_dir = make_run_dir(tmp_path)
    check_canary(run_dir, READY)
    facts = dataclasses.replace(FACTS, device="x86_64 Intel", numerics={"torch": "2.13.0", "threads": "2"})
    other = WorkerReady(worker=3, epoch=1, facts=facts, canary=OTHER)
    with pytest.raises(DeterminismBroken) as caught:
        check_canary(run_dir, other)
    text = str(caught.value)
    assert caught.value.exit_code == 4
    assert "device: x86_64 AMD when the run began, x86_64 Intel on worker 3" in text
    assert "threads: 1 when the run began, 2 on worker 3" in text
    assert "torch" not in text, "what is the same says nothing"
    assert "--determinism fast" in text


def test_where_nothing_that_is_recorded_differs_it_says_so(tmp_path: Path) -> None:
    run_dir = make_run_dir(tmp_path)
    check_canary(run_dir, READY)
    with pytest.raises(DeterminismBroken, match=r"nothing that is recorded differs.*torch 2\.13\.0"):
        check_canary(run_dir, dataclasses.replace(READY, canary=OTHER))


def test_comparing_writes_nothing(tmp_path: Path) -> None:
    run_dir = make_run_dir(tmp_path)
    compare_canary(run_dir, READY)
    assert not run_dir.canary.exists()


def test_last_bits_that_differ_are_refused_as_texts_are(tmp_path: Path) -> None:
    run_dir = make_run_dir(tmp_path)
    check_canary(run_dir, READY)
    with pytest.raises(DeterminismBroken, match="alike to the last bit of their probabilities"):
        check_canary(run_dir, dataclasses.replace(READY, canary=dataclasses.replace(ANSWER, bits="03")))
