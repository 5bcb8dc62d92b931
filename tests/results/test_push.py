"""`synthia-batch push`, to a Hub on loopback that answers as the Hub does."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Command, command_of, make_environment, write_jsonl
from fake_hub import TOKEN, FakeHub, Fault, serve_hub

REPOSITORY = "me/answers"
RUN = ("--engine", "scripted", "--pool", "local", "-q", "--set", "engine.fail_every=700")
ROWS = 2200


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run of three shards, each with a failed part, and its report."""
    directory = tmp_path_factory.mktemp("finished")
    write_jsonl(directory / "q.jsonl", [{"question": f"What is {n} squared?"} for n in range(ROWS)])
    command = command_of("run", "q.jsonl", *RUN, "-o", "out")
    done = subprocess.run(
        command,
        cwd=directory,
        env=make_environment(SYNTHIA_BATCH_REPORT="true"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return directory / "out"


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with serve_hub() as server:
        yield server


def read_files(run: Path) -> dict[str, bytes]:
    paths = [run / "README.md", *run.glob("data/*"), *run.glob("failed/*")]
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in paths}


def read_pushed(hub: FakeHub, branch: str = "main") -> dict[str, bytes]:
    files = dict(hub.read(REPOSITORY, branch))
    del files[".gitattributes"]
    return files


def test_the_hub_then_holds_the_same_bytes_in_one_commit(
    synthia: Command, hub: FakeHub, finished: Path
) -> None:
    done = synthia("push", finished, REPOSITORY, "--message", "A night", **hub.environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{hub.url}/datasets/{REPOSITORY}"
    assert read_pushed(hub) == read_files(finished)
    assert len(read_files(finished)) == 7
    assert hub.repositories[REPOSITORY].messages == ["initial commit", "A night"]
    assert not hub.repositories[REPOSITORY].private
    assert TOKEN not in done.stdout + done.stderr


def test_a_second_push_sends_nothing(synthia: Command, hub: FakeHub, finished: Path) -> None:
    assert synthia("push", finished, REPOSITORY, **hub.environment).returncode == 0
    hub.seen.clear()
    done = synthia("push", finished, REPOSITORY, **hub.environment)
    assert done.returncode == 0, done.stderr
    assert "is up to date: nothing was uploaded" in done.stderr
    assert not [line for line in hub.seen if "preupload" in line or "/lfs/" in line or "/commit/" in line]


def test_what_datasets_loads_from_the_hub_is_what_the_run_made(
    synthia: Command, hub: FakeHub, finished: Path, tmp_path: Path
) -> None:
    assert synthia("push", finished, REPOSITORY, **hub.environment).returncode == 0
    probe = (
        "import datasets, sys\n"
        f"found = datasets.load_dataset({REPOSITORY!r}, split='train')\n"
        "there = datasets.load_dataset(sys.argv[1], split='train')\n"
        "assert found.to_list() == there.to_list()\n"
        f"failed = datasets.load_dataset({REPOSITORY!r}, 'failed')\n"
        "print(len(found), sum(len(split) for split in failed.values()))\n"
    )
    environment = make_environment(**hub.environment, HF_HOME=str(tmp_path / "hf"))
    done = subprocess.run(
        [sys.executable, "-c", probe, finished], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["2196", "4"]


@pytest.mark.parametrize(
    ("pattern", "status"),
    [
        ("POST .*/preupload/", 429),
        ("POST .*/objects/batch", 503),
        ("PUT /lfs/", 500),
        ("POST .*/commit/", 429),
        ("POST .*/commit/", 504),
        ("GET /api/datasets/me/answers", 502),
        ("POST /api/repos/create", 429),
    ],
)
def test_a_hub_that_asks_to_wait_is_waited_for(
    synthia: Command, hub: FakeHub, finished: Path, pattern: str, status: int
) -> None:
    hub.faults.append(Fault(pattern, status=status, headers={"Retry-After": "1"}))
    done = synthia("push", finished, REPOSITORY, **hub.environment)
    assert done.returncode == 0, done.stderr
    assert hub.faults[0].times == 0
    assert read_pushed(hub) == read_files(finished)
    assert len(hub.repositories[REPOSITORY].messages) == 2


def test_a_commit_whose_answer_was_lost_is_not_made_twice(
    synthia: Command, hub: FakeHub, finished: Path
) -> None:
    hub.faults.append(Fault("POST .*/commit/", answers_lost=True))
    done = synthia("push", finished, REPOSITORY, **hub.environment)
    assert done.returncode == 0, done.stderr
    assert read_pushed(hub) == read_files(finished)
    assert len(hub.repositories[REPOSITORY].messages) == 2


def test_a_push_that_is_killed_goes_on_where_it_was(hub: FakeHub, finished: Path, synthia: Command) -> None:
    process = subprocess.Popen(
        command_of("push", finished, REPOSITORY),
        env=make_environment(**hub.environment),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    # As the third of six files arrives.
    uploads: list[int] = []

    def kill() -> None:
        uploads.append(1)
        if len(uploads) == 3:
            os.kill(process.pid, signal.SIGKILL)

    hub.faults.append(Fault("PUT /lfs/", times=6, call=kill))
    assert process.wait(timeout=60) == -signal.SIGKILL
    assert set(hub.read(REPOSITORY)) == {".gitattributes"}, "nothing is seen of half a push"
    sent = list(hub.uploaded)
    done = synthia("push", finished, REPOSITORY, **hub.environment)
    assert done.returncode == 0, done.stderr
    assert read_pushed(hub) == read_files(finished)
    assert len(hub.uploaded) == len(set(hub.uploaded)) == 6
    assert hub.uploaded[: len(sent)] == sent


def test_parts_of_an_earlier_dataset_are_replaced_and_other_files_stay(
    synthia: Command, hub: FakeHub, finished: Path
) -> None:
    assert synthia("push", finished, REPOSITORY, **hub.environment).returncode == 0
    files = {**hub.read(REPOSITORY), "data/train-00004-of-00009.parquet": b"old", "notes.txt": b"mine"}
    hub.repositories[REPOSITORY].commit("main", files, "by hand")
    done = synthia("push", finished, REPOSITORY, **hub.environment)
    assert done.returncode == 0, done.stderr
    assert read_pushed(hub) == {**read_files(finished), "notes.txt": b"mine"}


def test_a_private_branch_with_the_report(synthia: Command, hub: FakeHub, finished: Path) -> None:
    flags = ("--private", "--revision", "nightly", "--report")
    done = synthia("push", finished, REPOSITORY, *flags, **hub.environment)
    assert done.returncode == 0, done.stderr
    assert hub.repositories[REPOSITORY].private
    assert set(hub.read(REPOSITORY)) == {".gitattributes"}
    report = (finished / "report.html").read_bytes()
    assert read_pushed(hub, "nightly") == {**read_files(finished), "report.html": report}


def test_what_shall_be_private_is_not_pushed_in_public(
    synthia: Command, hub: FakeHub, finished: Path
) -> None:
    assert synthia("push", finished, REPOSITORY, **hub.environment).returncode == 0
    done = synthia("push", finished, REPOSITORY, "--private", **hub.environment)
    assert done.returncode == 2
    assert f"{REPOSITORY} exists and is public; nothing was sent" in done.stderr


def test_a_run_that_is_not_complete_is_refused(synthia: Command, hub: FakeHub, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "q.jsonl", [{"question": "Why?"}, {"question": "How?"}])
    # Its one sample fails.
    assert synthia("preview", "q.jsonl", "-n", "1", "--answers", *RUN, "-o", "out").returncode == 3
    done = synthia("push", "out", REPOSITORY, **hub.environment)
    assert done.returncode == 2, done.stderr
    assert "out: only a complete run can be pushed" in done.stderr
    assert not hub.seen


def test_an_altered_part_is_not_pushed(
    synthia: Command, hub: FakeHub, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "out")
    part = tmp_path / "out/data/train-00001-of-00003.parquet"
    content = bytearray(part.read_bytes())
    content[100] ^= 1
    part.write_bytes(content)
    done = synthia("push", "out", REPOSITORY, **hub.environment)
    assert done.returncode == 4, done.stderr
    assert "was altered" in done.stderr
    assert not hub.seen


@pytest.mark.parametrize(("token", "what"), [("", "set HF_TOKEN"), ("hf_wrong", "permissions of the token")])
def test_without_the_right_token_it_says_how_to_get_one(
    synthia: Command, hub: FakeHub, finished: Path, tmp_path: Path, token: str, what: str
) -> None:
    environment = {**hub.environment, "HF_TOKEN": token, "HF_HOME": str(tmp_path / "hf")}
    done = synthia("push", finished, REPOSITORY, **environment)
    assert done.returncode == 2, done.stderr
    assert what in done.stderr
    assert not token or token not in done.stderr
