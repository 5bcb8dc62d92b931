"""Conversations killed at every change to their directory: finished turns are not made again."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import read_bytes_of_data, write_jsonl
from harness import SmallJob, WarmProcess, open_fast_directory, replace_tree

from synthia_batch.core.types import Shard
from synthia_batch.job import plan
from synthia_batch.results.verify.repair import repair_run
from synthia_batch.storage.journal.frames import scan_frames
from synthia_batch.storage.layout import RunDir

KILLED = -9
INTEGRITY = 4
ROWS = 6
SECOND_SHARD = Shard(number=1, count=2, first_row=3, stop_row=6, first=3, stop=6)


def count_turns(row: int) -> int:
    return 1 + row % 4


class MultiTurnSession(SmallJob):
    """Six conversations of one to four turns in two shards; the first and the last fail at once.

    A sample stands for each of its turns here: (ordinal, turn).
    """

    def __post_init__(self) -> None:
        turns = [[f"Turn {k} of {n}?" for k in range(count_turns(n))] for n in range(ROWS)]
        write_jsonl(self.directory / "q.jsonl", [{"turns": questions} for questions in turns])
        self.rows = ROWS

    def made(self) -> list[tuple[int, int]]:  # type: ignore[override]
        if not self.call_log.exists():
            return []
        lines = [line.partition(".") for line in self.call_log.read_text().split()]
        return [(int(ordinal), int(turn or 0)) for ordinal, _, turn in lines]

    def run_undisturbed(self) -> None:
        ended = self.run()
        assert ended.code == 0, ended.stderr
        everything = {(n, k) for n in range(ROWS) for k in range(count_turns(n)) if n % 5}
        assert sorted(self.made()) == sorted({(0, 0), (5, 0), *everything})
        self.expected = read_bytes_of_data(self.run_directory)
        assert len(self.expected) == 6


def read_ended_turns(run_directory: Path) -> set[tuple[int, int]]:
    """Return the turns that are in a journal or in a part, read without the code under test."""
    ended = set()
    for kind, more in (("data", 0), ("failed", 1)):
        for part in (run_directory / kind).glob("*.parquet"):
            for row in pq.ParquetFile(part).read(["row_index", "messages"]).to_pylist():
                answers = sum(message["role"] == "assistant" for message in row["messages"])
                ended |= {(row["row_index"], turn) for turn in range(answers + more)}
    for journal in (run_directory / ".synthia" / "journal").glob("*.wal"):
        ended |= list_journaled_turns(journal)
    return ended


def list_journaled_turns(journal: Path) -> set[tuple[int, int]]:
    with journal.open("rb") as file:
        values = [frame.value for frame in scan_frames(file) if frame.value is not None]
    turns = {(value["of"], value["turn"]) for value in values if "turn" in value}
    for value in values:
        for kind in ("finished", "failed"):
            if kind in value:
                turns |= {(value[kind], turn) for turn in range(1 + len(value.get("earlier", [])))}
    return turns


@pytest.fixture
def job(warm: WarmProcess, tmp_path: Path) -> Iterator[MultiTurnSession]:
    with open_fast_directory(tmp_path) as directory:
        job = MultiTurnSession(warm, directory)
        job.run_undisturbed()
        yield job


@pytest.mark.parametrize("when", ["before", "half", "after"])
def test_killed_at_every_change_no_finished_turn_is_made_again(job: MultiTurnSession, when: str) -> None:
    log = job.directory / "changes"
    shutil.rmtree(job.run_directory)
    assert job.run(list={"log": str(log)}).code == 0
    changes = [line.split() for line in log.read_text().splitlines()]
    # Only what has to do with turns: tests/test_kill_everywhere.py has all the others.
    journals = [at for at, (name, path, *_) in enumerate(changes, 1) if "shard-" in path]
    kills = inside = 0
    for at in journals:
        if when == "half" and changes[at - 1][0] != "write":
            continue
        shutil.rmtree(job.run_directory, ignore_errors=True)
        ended = job.run(kill={"at": at, "when": when})
        assert ended.code in (0, KILLED), ended.stderr
        if ended.code == KILLED:
            kills += 1
            ended_turns = read_ended_turns(job.run_directory)
            inside += any((n, count_turns(n) - 1) not in ended_turns for n, _ in ended_turns if n % 5)
            job.check_resumed(ended_before=ended_turns, context=(when, at))  # type: ignore[arg-type]
    print(f"{kills} kills, {when} the call, {inside} of them within a conversation")
    assert inside >= 4


@pytest.fixture
def killed(job: MultiTurnSession, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The journal of a second shard that was killed before it was published."""
    shutil.rmtree(job.run_directory)
    log = job.directory / "syncs"
    # The first shard asks the ledger once, its opening once: the third time is the second shard's.
    third = {"name": "fdatasync", "code": 5, "log": str(log), "path": "intents.wal", "first": 3}
    assert job.run(fail=third).code == 74
    shutil.copytree(job.run_directory, job.directory / "killed")
    monkeypatch.setattr(plan, "ROWS_STEP", ROWS // 2)  # a repair in this process knows the same plan
    return RunDir(job.run_directory).journal(SECOND_SHARD)


def list_frame_bounds(journal: Path) -> list[tuple[int, int]]:
    with journal.open("rb") as file:
        return [(frame.offset, frame.stop) for frame in scan_frames(file)]


def test_a_journal_cut_in_every_frame_makes_the_last_turn_again_and_none_before_it(
    job: MultiTurnSession, killed: Path
) -> None:
    whole, bounds = killed.read_bytes(), list_frame_bounds(killed)
    unpublished = list_journaled_turns(killed)
    assert unpublished == {(3, 0), (3, 1), (3, 2), (3, 3), (4, 0), (5, 0)}
    for length in sorted({cut for start, stop in bounds for cut in (start, (start + stop) // 2, stop)}):
        replace_tree(job.directory / "killed", job.run_directory)
        killed.write_bytes(whole[:length])
        kept = list_journaled_turns(killed)
        job.check_resumed(ended_before=read_ended_turns(job.run_directory), context=length)  # type: ignore[arg-type]
        assert sorted(job.made()) == sorted(unpublished - kept), length


def test_a_damaged_turn_is_refused_with_its_offset_and_repaired(job: MultiTurnSession, killed: Path) -> None:
    whole, bounds = killed.read_bytes(), list_frame_bounds(killed)
    for start, stop in bounds[1:-1]:
        replace_tree(job.directory / "killed", job.run_directory)
        spoilt = bytearray(whole)
        spoilt[(start + stop) // 2] ^= 1
        killed.write_bytes(spoilt)
        refused = job.run()
        assert refused.code == INTEGRITY
        assert f"byte {start}: " in refused.stderr
        assert not repair_run(job.run_directory, lambda done, total: None).remaining
        job.check_resumed(ended_before=read_ended_turns(job.run_directory), context=start)  # type: ignore[arg-type]
