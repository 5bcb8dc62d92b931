"""The package as Python uses it: a job made and read back, from scripts as people write them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import ROOT, make_environment, write_jsonl

import synthia_batch
from synthia_batch import FinishedSample, Job, open_run, run_job
from synthia_batch.errors import IntegrityError, UsageError

SCRIPTED = {"engine": {"kind": "scripted"}, "pool": {"kind": "local"}, "report": False}


def make_job(directory: Path, rows: int = 10, **more: object) -> Job:
    questions = [{"question": f"What is {n} squared?", "n": n} for n in range(rows)]
    source = write_jsonl(directory / "q.jsonl", questions)
    values = {
        "input": {"path": source, "keep_columns": ["n"]},
        "output": directory / "out",
        **SCRIPTED,
        **more,
    }
    return Job.model_validate(values)


def run_script(text: str, directory: Path) -> subprocess.CompletedProcess[str]:
    script = directory / "script.py"
    script.write_text(text)
    return subprocess.run(
        [sys.executable, str(script)],
        cwd=directory, env=make_environment(), capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


def test_the_example_runs_as_it_stands_and_again(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "from_python.py"), str(tmp_path)]
    told = [
        subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
        for _ in range(2)
    ]
    assert told[0] == told[1]
    assert "112 samples" in told[0]
    assert "the longest answer" in told[0]


def test_importing_the_package_loads_nothing_of_it() -> None:
    probe = (
        "import sys, synthia_batch; dir(synthia_batch); "
        "print([name for name in sys.modules if name.startswith('synthia_batch.')])"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there_and_the_package_says_that_it_is_typed() -> None:
    for name in synthia_batch.__all__:
        assert getattr(synthia_batch, name).__name__ == name
    assert set(synthia_batch.__all__) <= set(dir(synthia_batch))
    assert (Path(synthia_batch.__file__).parent / "py.typed").exists()
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = synthia_batch.no_such_name


def test_samples_are_the_rows_of_the_files_in_order(tmp_path: Path) -> None:
    result = run_job(make_job(tmp_path, num_samples=3))
    assert (result.is_complete, result.exit_code, result.made) == (True, 0, 30)
    run = open_run(result.directory)
    samples = list(run.samples())
    rows = pq.read_table(result.directory / "data").to_pylist()
    assert [sample.response for sample in samples] == [row["response"] for row in rows]
    assert [sample.seed for sample in samples] == [row["seed"] for row in rows]
    assert [sample.kept for sample in samples] == [{"n": row["n"]} for row in rows]
    assert samples[0].messages[-1].content == samples[0].response
    assert [sample.kept for sample in run.samples(kept=[])] == [{}] * 30
    assert run.is_complete
    assert run_job(run.job).made == 0


def test_statistics_count_what_the_files_hold(tmp_path: Path) -> None:
    engine = {"kind": "scripted", "fail_every": 5}
    result = run_job(make_job(tmp_path, engine=engine, sampling={"max_tokens": 12}))
    numbers = open_run(str(result.directory)).statistics()
    table = pq.read_table(result.directory / "data")
    assert (numbers.samples, numbers.finished, numbers.failed, numbers.missing) == (10, 8, 2, 0)
    assert numbers.failures == {"scripted_failure": 2}
    assert sum(numbers.finish_reasons.values()) == 8
    assert numbers.completion_tokens == sum(table["completion_tokens"].to_pylist())
    assert numbers.prompt_tokens == sum(table["prompt_tokens"].to_pylist())
    failed = list(open_run(result.directory).failed())
    assert [one.place for one in failed] == [f"{tmp_path / 'q.jsonl'}:{line}" for line in (1, 6)]
    assert list(open_run(result.directory).failed("other")) == []


def test_samples_come_one_published_file_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards have 1,000 rows: while the first is read, the second may not be."""
    from synthia_batch.results.read import run as read_api

    result = run_job(make_job(tmp_path, rows=2500))
    read: list[str] = []
    real = read_api.read_part

    def note(path: Path, columns: object = None) -> object:
        read.append(path.name)
        return real(path, columns)

    monkeypatch.setattr(read_api, "read_part", note)
    samples: Iterator[FinishedSample] = open_run(result.directory).samples()
    next(samples)
    assert read == ["train-00000-of-00003.parquet"]
    assert sum(1 for _ in samples) == 2499
    assert len(read) == 3


def test_a_run_is_read_while_it_goes_on_and_drains_on_a_signal(tmp_path: Path) -> None:
    make_job(tmp_path, rows=2000)
    script = (
        "from synthia_batch import Job, run_job\n"
        "job = Job(input={'path': 'q.jsonl', 'keep_columns': ['n']}, output='out', report=False,\n"
        "          engine={'kind': 'scripted', 'latency_ms': 60}, pool={'kind': 'local'})\n"
        "result = run_job(job)\n"
        "print(result.drained, result.is_complete, result.exit_code)\n"
    )
    (tmp_path / "script.py").write_text(script)
    process = subprocess.Popen(
        [sys.executable, "script.py"],
        cwd=tmp_path, env=make_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        run = wait_for_part(tmp_path / "out")
        process.send_signal(signal.SIGSTOP)  # so that it is still under way when all is read
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        seen = list(run.samples())
        assert [sample.row_index for sample in seen] == list(range(1000))
        numbers = run.statistics()
        assert 1000 <= numbers.finished < 2000
        assert not run.is_complete
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGCONT)
        told, words = process.communicate(timeout=60)
    finally:
        process.kill()
    assert told.split() == ["DrainReason.INTERRUPT", "False", "130"], words
    assert "samples/s" not in words
    result = run_job(run.job)
    assert result.is_complete
    assert 0 < result.made < 1000
    assert sum(1 for _ in run.samples()) == 2000


def wait_for_part(directory: Path) -> synthia_batch.Run:
    deadline = time.monotonic() + 60
    while not (directory / "data" / "train-00000-of-00002.parquet").exists():
        assert time.monotonic() < deadline, "nothing was published"
        time.sleep(0.02)
    return open_run(directory)


def test_ray_workers_need_no_guard_in_the_script(tmp_path: Path) -> None:
    make_job(tmp_path)
    done = run_script(
        "print('imported')\n"
        "from synthia_batch import Job, open_run, run_job\n"
        "job = Job(input={'path': 'q.jsonl'}, output='out', pool={'workers': 2},\n"
        "          engine={'kind': 'scripted'})\n"
        "print(run_job(job).finished, len(list(open_run('out').samples())))\n",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["imported", "10", "10"]


def test_what_is_no_run_or_was_altered_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a run directory"):
        open_run(tmp_path)
    with pytest.raises(UsageError, match="copy the run here"):
        open_run("s3://bucket/run")
    directory = run_job(make_job(tmp_path)).directory
    with pytest.raises(UsageError, match="--keep-columns nothing"):
        next(open_run(directory).samples(kept=["nothing"]))
    part = directory / "data" / "train-00000-of-00001.parquet"
    os.truncate(part, part.stat().st_size // 2)
    with pytest.raises(IntegrityError, match="cannot be read"):
        next(open_run(directory).samples())
