"""The turns of conversations in a journal: in order, once each, and until their sample has ended."""

from dataclasses import replace
from pathlib import Path

import pytest

from synthia_batch.core.types import Failed, Finished, Record, Shard, Turn
from synthia_batch.errors import JournalCorrupt
from synthia_batch.storage.journal.frames import scan_frames
from synthia_batch.storage.journal.reader import Replayed, list_records, read_journal
from synthia_batch.storage.journal.writer import Journal, repair_journal, write_journal
from synthia_batch.storage.lock import WriterEpoch

SHARD = Shard(number=0, count=1, first_row=0, stop_row=9, first=0, stop=9)
WRITER = WriterEpoch(plan_digest="c0ffee", epoch=1, boot="this boot")
AFTER_POWER_LOSS = replace(WRITER, epoch=2, boot="the next boot")


def finish(ordinal: int, *answers: str) -> Finished:
    return Finished(
        ordinal=ordinal, response=answers[-1], reasoning=None, finish_reason="stop", prompt_tokens=9,
        completion_tokens=len(answers), earlier=answers[:-1],
    )  # fmt: skip


def turn(ordinal: int, number: int, response: str) -> Turn:
    return Turn(
        ordinal=ordinal, number=number, response=response, finish_reason="stop", prompt_tokens=3,
        completion_tokens=1,
    )  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shard-00000.wal"


def write(path: Path, *records: Record) -> None:
    journal = Journal.open(path, SHARD, WRITER)
    for record in records:
        journal.append([record])
    journal.close()


def read(path: Path) -> Replayed:
    return read_journal(path, SHARD, WRITER)


def list_bounds(path: Path) -> list[tuple[int, int]]:
    with path.open("rb") as file:
        return [(frame.offset, frame.stop) for frame in scan_frames(file)]


def spoil(path: Path, number: int) -> int:
    """Damage the frame of that number; return where it starts. 0 is the header, 1 says that it is synced."""
    start, stop = list_bounds(path)[number]
    content = bytearray(path.read_bytes())
    content[(start + stop) // 2] ^= 1
    path.write_bytes(content)
    return start


def test_turns_come_back_until_their_conversation_has_ended(path: Path) -> None:
    write(
        path, turn(1, 0, "a"), turn(2, 0, "x"), turn(1, 1, "b\n"), turn(2, 1, "y"), finish(2, "x", "y", "z")
    )
    replayed = read(path)
    assert replayed.outcomes == {2: finish(2, "x", "y", "z")}
    assert replayed.turns == {1: [turn(1, 0, "a"), turn(1, 1, "b\n")]}


def test_a_failure_ends_a_conversation_and_keeps_its_answers(path: Path) -> None:
    failed = Failed(ordinal=1, code="context_overflow", message="no room", earlier=("a", "b"))
    write(path, turn(1, 0, "a"), failed)
    assert read(path).outcomes == {1: failed}
    assert read(path).turns == {}


def test_a_sample_of_one_turn_is_written_as_ever(path: Path) -> None:
    write(path, finish(1, "a"), Failed(ordinal=2, code="x", message="y"))
    assert b"earlier" not in path.read_bytes()
    assert b"turn" not in path.read_bytes()


def test_a_torn_turn_is_dropped_and_those_before_it_stay(path: Path) -> None:
    write(path, turn(1, 0, "a"), turn(1, 1, "b"))
    whole = path.read_bytes()
    start, stop = list_bounds(path)[-1]
    for length in range(start, stop):
        path.write_bytes(whole[:length])
        journal = Journal.open(path, SHARD, replace(WRITER, epoch=2))
        assert journal.replayed.turns == {1: [turn(1, 0, "a")]}, length
        journal.append([turn(1, 1, "b")])
        journal.close()
        assert read(path).turns == {1: [turn(1, 0, "a"), turn(1, 1, "b")]}


def test_the_same_turn_twice_counts_once(path: Path) -> None:
    write(path, turn(1, 0, "a"), turn(1, 1, "b"), turn(1, 0, "a"))
    assert read(path).turns == {1: [turn(1, 0, "a"), turn(1, 1, "b")]}


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        (
            [turn(1, 0, "a"), turn(1, 0, "b")],
            "turn 0 of sample 1 was already finished with different",
        ),
        ([turn(1, 1, "b")], "turn 1 of sample 1: expected turn 0"),
        ([turn(1, 0, "a"), turn(1, 2, "c")], "turn 2 of sample 1: expected turn 1"),
        ([turn(1, -1, "a")], "turn -1 of sample 1: expected turn 0"),
        ([finish(1, "a"), turn(1, 0, "a")], "turn 0 of sample 1 comes after its end"),
        ([turn(1, 0, "a"), finish(1, "b", "c")], "sample 1 ends a conversation whose recorded turns differ"),
        ([turn(1, 0, "a"), turn(1, 1, "b"), finish(1, "a", "c")], "whose recorded turns differ"),
        ([turn(1, 0, "a"), Failed(ordinal=1, code="x", message="y")], "whose recorded turns differ"),
    ],
)
def test_turns_that_contradict_each_other_are_refused_and_cut_out(
    path: Path, records: list[Record], reason: str
) -> None:
    write(path, *records)
    start, stop = list_bounds(path)[-1]
    with pytest.raises(JournalCorrupt, match=f"byte {start}: .*{reason}"):
        read(path)
    before = records[:-1]
    (damage,) = repair_journal(path, SHARD, WRITER)
    assert (damage.offset, damage.length) == (start, stop - start)
    assert list(list_records(read(path))) == before


def test_a_turn_of_another_shard_is_refused(path: Path) -> None:
    journal = Journal.open(path, SHARD, WRITER)
    with pytest.raises(ValueError, match="sample 9 is not in shard 0"):
        journal.append([turn(9, 0, "a")])
    journal.close()


def test_a_repair_drops_a_damaged_turn_and_those_that_follow_from_it(path: Path) -> None:
    write(path, turn(1, 0, "a"), turn(2, 0, "x"), turn(1, 1, "b"), turn(1, 2, "c"), finish(2, "x", "y"))
    offset = spoil(path, 4)
    with pytest.raises(JournalCorrupt, match=f"byte {offset}: "):
        read(path)
    damages = repair_journal(path, SHARD, WRITER)
    assert [damage.reason for damage in damages] == [
        "the frame fails its checksum", "turn 2 of sample 1: expected turn 1",
    ]  # fmt: skip
    assert read(path).turns == {1: [turn(1, 0, "a")]}
    assert read(path).outcomes == {2: finish(2, "x", "y")}


def test_an_ended_conversation_does_not_need_its_turns(path: Path) -> None:
    write(path, turn(1, 0, "a"), turn(1, 1, "b"), finish(1, "a", "b", "c"))
    spoil(path, 2)
    repair_journal(path, SHARD, WRITER)
    assert read(path).outcomes == {1: finish(1, "a", "b", "c")}


def test_after_a_power_cut_turns_go_on_before_the_first_hole(path: Path) -> None:
    write(path, turn(1, 0, "a"), turn(1, 1, "b"), turn(1, 2, "c"))
    start, stop = list_bounds(path)[3]
    content = path.read_bytes()
    path.write_bytes(content[:start] + bytes(stop - start) + content[stop:])
    journal = Journal.open(path, SHARD, AFTER_POWER_LOSS)
    assert journal.replayed.turns == {1: [turn(1, 0, "a")]}
    journal.append([turn(1, 1, "b")])
    journal.close()
    assert read_journal(path, SHARD, AFTER_POWER_LOSS).turns == {1: [turn(1, 0, "a"), turn(1, 1, "b")]}


def test_a_journal_written_anew_holds_the_turns_too(path: Path) -> None:
    records = [finish(2, "x", "y"), turn(1, 0, "a"), turn(1, 1, "b")]
    write_journal(path, SHARD, WRITER, records)
    assert list(list_records(read(path))) == records
