"""A run in a store as its user sees it: every command that takes a directory, and the readers of datasets."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Command, make_environment, read_bytes_of_data, read_call_log, write_jsonl
from s3 import S3, URL, serve_s3

ROWS = 2200
RUN = ("run", "q.jsonl", "--engine", "scripted", "--pool", "local", "-q")
FAILING = ("--set", "engine.fail_every=700", "--set", "engine.fail_while_missing=mended")


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with serve_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def run(s3: S3, synthia: Command, tmp_path: Path) -> Iterator[Path]:
    """A complete run in the store, with four failed samples, and its state directory."""
    s3.empty()
    write_jsonl(tmp_path / "q.jsonl", [{"question": f"What is {n} squared?"} for n in range(ROWS)])
    done = synthia(*RUN, *FAILING, "-o", URL, SYNTHIA_BATCH_REPORT="true", **s3.environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == URL
    [directory] = (tmp_path / "outputs").iterdir()
    yield directory
    s3.empty()


def test_the_store_has_the_bytes_of_the_state_directory_and_the_report(s3: S3, run: Path) -> None:
    assert s3.read_dataset() == read_bytes_of_data(run)
    assert s3.read("report.html") == (run / "report.html").read_bytes()
    assert s3.read(".synthia/plan.json") == (run / ".synthia/plan.json").read_bytes()


def test_a_run_in_a_directory_writes_the_same_bytes(
    s3: S3, run: Path, synthia: Command, tmp_path: Path
) -> None:
    assert synthia(*RUN, *FAILING, "-o", "here").returncode == 0
    assert read_bytes_of_data(tmp_path / "here") == s3.read_dataset()


def test_arrow_and_datasets_read_it_from_the_store(s3: S3, run: Path, tmp_path: Path) -> None:
    probe = (
        "import datasets, pyarrow.dataset, sys\n"
        "from obstore.fsspec import register\n"
        "url = sys.argv[1]\n"
        "table = pyarrow.dataset.dataset(url + '/data').to_table()\n"
        "register('s3')\n"
        "options = {'config': {'endpoint': sys.argv[2]}, 'client_options': {'allow_http': True}}\n"
        "found = datasets.load_dataset('parquet', data_files=url + '/data/*.parquet', split='train',\n"
        "                              storage_options=options)\n"
        "here = datasets.load_dataset(sys.argv[3], split='train')\n"
        "assert table.to_pylist() == found.to_list() == here.to_list()\n"
        "print(len(found))\n"
    )
    command = [sys.executable, "-c", probe, URL, s3.proxy.url, str(run)]
    environment = make_environment(**s3.environment, HF_HOME=str(tmp_path / "hf"))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == str(ROWS - 4)


def test_status_tells_what_is_there(s3: S3, run: Path, synthia: Command) -> None:
    done = synthia("status", URL, **s3.environment)
    assert done.returncode == 0, done.stderr
    assert f"q  complete  {URL}" in done.stdout
    assert "2200 of 2200 stored: 2196 finished, 4 failed" in done.stdout
    found = json.loads(synthia("status", URL, "--json", **s3.environment).stdout)
    assert (found["state"], found["shards"], found["shards_published"]) == ("complete", 3, 3)
    s3.ask("DELETE", "night/runs/a/manifest.json")
    s3.ask("DELETE", "night/runs/a/data/train-00001-of-00003.parquet")
    found = json.loads(synthia("status", URL, "--json", **s3.environment).stdout)
    assert (found["state"], found["shards_published"]) == ("unfinished", 2)


def test_verify_reads_every_byte_of_the_store(s3: S3, run: Path, synthia: Command) -> None:
    done = synthia("verify", URL, "--rows", "-q", **s3.environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{URL}: no findings: complete, 3 of 3 shards published, 2200 samples" in done.stdout
    part = "data/train-00001-of-00003.parquet"
    content = bytearray(s3.read(part))
    content[len(content) // 2] ^= 1
    s3.put(part, bytes(content))
    s3.put("failed/failed-00077-of-00078.parquet", b"mine")
    done = synthia("verify", URL, "-q", **s3.environment)
    assert done.returncode == 4, done.stdout + done.stderr
    assert f"{part}" in done.stdout
    assert "failed/failed-00077-of-00078.parquet: is not a file of this run" in done.stdout


def test_failed_and_export_read_the_store(s3: S3, run: Path, synthia: Command, tmp_path: Path) -> None:
    there, here = (synthia("failed", place, **s3.environment) for place in (URL, run))
    assert there.returncode == 0, there.stderr
    assert there.stdout == here.stdout
    assert there.stdout.count("scripted_failure") == 4
    assert f"synthia-batch retry {URL}" in there.stderr
    for place, file in ((URL, "there.jsonl"), (run, "here.jsonl")):
        done = synthia("export", place, "--to", "messages", "-o", file, **s3.environment)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "there.jsonl").read_bytes() == (tmp_path / "here.jsonl").read_bytes()


@pytest.mark.parametrize("is_lost", [False, True], ids=["state kept", "state lost"])
def test_retry_replaces_the_parts_of_the_store(
    s3: S3, run: Path, synthia: Command, tmp_path: Path, is_lost: bool
) -> None:
    before = s3.read_dataset()
    (tmp_path / "mended").touch()
    if is_lost:
        shutil.rmtree(run)
    log = tmp_path / "calls"
    flags = ("--set", f"engine.call_log={log}", "-q")
    done = synthia("retry", URL, *flags, **s3.environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == URL
    assert sorted(read_call_log(log)) == [0, 700, 1400, 2100]
    after = s3.read_dataset()
    assert after == read_bytes_of_data(run)
    assert [key for key in before if key.startswith("failed/")]
    assert not [key for key in after if key.startswith("failed/")]
    assert after.keys() < before.keys()


def test_the_same_command_mends_what_is_missing_in_the_store(s3: S3, run: Path, synthia: Command) -> None:
    before = s3.read_dataset()
    s3.ask("DELETE", "night/runs/a/data/train-00001-of-00003.parquet")
    done = synthia(*RUN, *FAILING, "-o", URL, **s3.environment)
    assert done.returncode == 0, done.stderr
    assert s3.read_dataset() == before


def test_a_run_that_was_made_locally_is_put_into_the_store_as_it_is(
    s3: S3, synthia: Command, tmp_path: Path
) -> None:
    s3.empty()
    write_jsonl(tmp_path / "q.jsonl", [{"question": f"What is {n} squared?"} for n in range(ROWS)])
    assert synthia(*RUN).returncode == 0
    [directory] = (tmp_path / "outputs").iterdir()
    done = synthia(*RUN, "-o", URL, **s3.environment)
    assert done.returncode == 0, done.stderr
    assert "already complete: 2200 of 2200" in done.stderr
    assert s3.read_dataset() == read_bytes_of_data(directory)
    sent = len(s3.proxy.seen)
    assert synthia(*RUN, "-o", URL, **s3.environment).returncode == 0
    assert len(s3.proxy.seen) == sent + 2, "the manifest, and a listing"
    s3.empty()


def test_a_job_file_names_the_store(s3: S3, synthia: Command, tmp_path: Path) -> None:
    s3.empty()
    write_jsonl(tmp_path / "q.jsonl", [{"question": "Why?"}])
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/night.yaml").write_text(
        f"input:\n  path: ../q.jsonl\noutput: {URL}\nstore:\n  state: ../memory\n  lease: 2m\n"
        "engine:\n  kind: scripted\npool:\n  kind: local\n"
    )
    done = synthia("run", "jobs/night.yaml", "-q", **s3.environment)
    assert done.returncode == 0, done.stderr
    assert s3.read_dataset() == read_bytes_of_data(tmp_path / "memory")
    s3.empty()


@pytest.mark.parametrize("url", ["s3://night", "s3://night/", "https://night/runs", "ftp://x/y"])
def test_what_is_no_place_for_an_output_is_refused(synthia: Command, tmp_path: Path, url: str) -> None:
    write_jsonl(tmp_path / "q.jsonl", [{"question": "Why?"}])
    done = synthia(*RUN, "-o", url)
    assert done.returncode == 2
    assert "Input should be a directory, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX" in done.stderr


def test_a_missing_extra_is_named(synthia: Command, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "q.jsonl", [{"question": "Why?"}])
    (tmp_path / "hidden/obstore").mkdir(parents=True)
    (tmp_path / "hidden/obstore/__init__.py").write_text("raise ImportError('obstore is not installed')")
    path = f"{tmp_path / 'hidden'}:{Path(__file__).parent.parent.parent}"
    for url, extra in ((URL, "s3"), (URL.replace("s3:", "gs:"), "gcs")):
        done = synthia(*RUN, "-o", url, PYTHONPATH=path)
        assert done.returncode == 2, done.stderr
        assert (
            f"writing to object stores needs the extra {extra!r}: pip install 'synthia-batch[{extra}]'"
            in (done.stderr)
        )
        assert not (tmp_path / "outputs").exists() or not list((tmp_path / "outputs").iterdir())
