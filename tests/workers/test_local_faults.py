"""Engines that hang or run out of memory, in threads of one process: no Ray, so quick."""

import importlib.util
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import NEEDS_VLLM, Command, read_bytes_of_data, read_call_log, write_jsonl
from harness import WarmProcess

LOCAL = ("--engine", "scripted", "--pool", "local")


def write_questions(path: Path, count: int, odd: int | None = None) -> Path:
    return write_jsonl(
        path, [{"question": f"What is {n} squared? {'tarpit' if n == odd else ''}"} for n in range(count)]
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_an_engine_out_of_memory_starts_again_smaller_and_says_so(
    synthia: Command, tmp_path: Path, workers: int
) -> None:
    source = write_questions(tmp_path / "q.jsonl", 200)
    log = tmp_path / "calls"
    done = synthia(
        "run", source, *LOCAL, "--workers", workers, "--set", "engine.max_num_seqs=64", "--set",
        "engine.oom_above=20", "--set", f"engine.call_log={log}", "-o", "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "ran out of memory and starts again in 0.2 s with less memory" in done.stderr
    assert done.stderr.count("ran out of memory") == 2 * workers  # 64, 32, 16
    assert sorted(read_call_log(log)) == list(range(200)), "each sample is made once"
    plain = synthia("run", source, *LOCAL, "-o", "plain")
    assert plain.returncode == 0
    assert read_bytes_of_data(tmp_path / "out") == read_bytes_of_data(tmp_path / "plain")


def test_an_engine_that_hangs_on_everything_ends_the_run_with_the_reason(
    synthia: Command, warm: WarmProcess, tmp_path: Path
) -> None:
    source = write_questions(tmp_path / "q.jsonl", 200)
    hanging = ("--set", "engine.hang_on=squared", "--set", "pool.watchdog_seconds=0.4")
    # How long its pauses are, tests/scheduler/test_restart_policy.py says.
    quick = {"synthia_batch.scheduler.restart_policy.FIRST_PAUSE_SECONDS": 0.01}
    done = warm.run(tmp_path, "run", "q.jsonl", *LOCAL, *hanging, "-o", "out", patch=quick)
    assert done.code == 69, done.stderr
    assert "no worker is left" in done.stderr
    assert "made no step for 0.4 s" in done.stderr
    assert not (tmp_path / "out" / "manifest.json").exists()
    again = synthia("run", source, *LOCAL, "-o", "out")
    assert again.returncode == 0, again.stderr
    assert pq.read_table(tmp_path / "out" / "data").num_rows == 200, "a broken engine convicts no sample"


def test_a_sample_that_hangs_engines_is_set_aside(synthia: Command, tmp_path: Path) -> None:
    source = write_questions(tmp_path / "q.jsonl", 100, odd=31)
    log = tmp_path / "calls"
    done = synthia(
        "run", source, *LOCAL, "--workers", "2", "--set", "engine.hang_on=tarpit", "--set",
        "pool.watchdog_seconds=1", "--set", f"engine.call_log={log}", "-o", "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (failed,) = pq.read_table(tmp_path / "out" / "failed").to_pylist()
    assert (failed["row_index"], failed["code"]) == (31, "engine_crash")
    assert sorted(read_call_log(log)) == [n for n in range(100) if n != 31]


def test_engines_that_never_end_loading_end_the_run_with_the_reason(synthia: Command, tmp_path: Path) -> None:
    source = write_questions(tmp_path / "q.jsonl", 10)
    done = synthia("run", source, *LOCAL, "--set", "engine.load_seconds=10000", "-o", "out", "--set",
                   "pool.load_timeout_seconds=0.5", timeout=60)  # fmt: skip
    assert done.returncode == 69, done.stderr
    assert done.stderr.count("worker 0 hung") == 2
    assert "did not load in 0.5 s (pool.load_timeout_seconds)" in done.stderr


@NEEDS_VLLM
@pytest.mark.parametrize(
    "broken",
    ['raise RuntimeError("operator torchvision::nms does not exist")', "import torch.no_such_module"],
    ids=["operator", "module"],
)
def test_an_engine_that_cannot_be_imported_ends_the_run_at_once(
    synthia: Command, tmp_path: Path, broken: str
) -> None:
    """Its settings are read from the source, so only the import itself is broken."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    copy = tmp_path / "broken/vllm"
    copy.mkdir(parents=True)
    for file in Path(spec.origin).parent.iterdir():
        (copy / file.name).symlink_to(file)
    (copy / "__init__.py").unlink()
    (copy / "__init__.py").write_text(broken)
    source = write_questions(tmp_path / "q.jsonl", 3)
    path = os.pathsep.join([str(tmp_path / "broken"), os.environ.get("PYTHONPATH", "")])
    done = synthia("run", source, "--pool", "local", "-o", "out", PYTHONPATH=path)
    assert done.returncode == 69, done.stderr
    log = "out/.synthia/logs/worker-0.log"
    assert done.stderr.count("worker 0") == 1, "no restart"
    assert f"worker 0 could not load its engine, and no other could (log: {log})" in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: the engine cannot be imported: ")
    assert "torchvision::nms does not exist" in last or "No module named 'torch.no_such_module'" in last
    assert "Traceback" not in done.stderr
    assert "Traceback" in (tmp_path / log).read_text()
