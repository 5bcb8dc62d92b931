"""The journal: finished samples come back, torn tails are dropped, other damage is refused."""

import errno
import os
from dataclasses import replace

import pytest

from synthia_batch.core.types import Failed, Finished, Shard
from synthia_batch.errors import JournalCorrupt, StorageFailed
from synthia_batch.storage.journal.frames import encode_frame, scan_frames
from synthia_batch.storage.journal.reader import read_journal, replay
from synthia_batch.storage.journal.writer import (
    SYNC_PAUSE_SECONDS,
    SYNC_SAMPLES,
    SYNC_SECONDS,
    Journal,
    repair_journal,
)
from synthia_batch.storage.lock import WriterEpoch

SHARD = Shard(number=7, count=60, first_row=100, stop_row=200, first=100, stop=200)
WRITER = WriterEpoch(plan_digest="c0ffee", epoch=1, boot="this boot")
AFTER_POWER_LOSS = replace(WRITER, epoch=2, boot="the next boot")


def finish(ordinal, response="ja"):
    return Finished(
        ordinal=ordinal,
        response=response,
        reasoning=None,
        finish_reason="stop",
        prompt_tokens=3,
        completion_tokens=1,
    )


OUTCOMES = [
    finish(100, "naïve 🙂\nzwei"),
    Failed(ordinal=103, code="prompt_too_long", message="the prompt has 9 tokens"),
    finish(101),
    finish(102, ""),
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "shard-00007.wal"


def write(path, outcomes, *, writer=WRITER, syncs=()):
    """Append each outcome for itself, with a sync after those whose place is in `syncs`."""
    journal = Journal.open(path, SHARD, writer)
    for place, outcome in enumerate(outcomes):
        journal.append([outcome])
        if place in syncs:
            journal.sync()
    journal.close()


def by_ordinal(outcomes):
    return {outcome.ordinal: outcome for outcome in outcomes}


def frame_bounds(path):
    with path.open("rb") as file:
        return [(frame.offset, frame.stop, frame.value) for frame in scan_frames(file)]


def test_what_was_appended_comes_back(path):
    write(path, OUTCOMES)

    assert replay(path, SHARD, WRITER) == by_ordinal(OUTCOMES)


def test_no_file_is_an_empty_journal(path):
    assert replay(path, SHARD, WRITER) == {}
    assert not path.exists()


def test_many_samples_are_finished_by_one_write(path, monkeypatch):
    journal = Journal.open(path, SHARD, WRITER)
    calls = []
    real_write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: calls.append(1) or real_write(fd, data))

    journal.append(OUTCOMES)

    assert calls == [1]


def test_an_opening_goes_on_where_the_last_one_ended(path):
    write(path, OUTCOMES[:2])
    write(path, OUTCOMES[2:], writer=replace(WRITER, epoch=2))

    replayed = read_journal(path, SHARD, WRITER)

    assert replayed.outcomes == by_ordinal(OUTCOMES)
    assert replayed.epoch == 2


def test_cut_at_every_byte_the_whole_frames_remain_and_the_rest_is_made_again(path):
    write(path, OUTCOMES, syncs=(1,))
    whole = path.read_bytes()
    bounds = frame_bounds(path)

    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        kept = [outcome for outcome in OUTCOMES if _stop_of(outcome, bounds) <= length]
        journal = Journal.open(path, SHARD, replace(WRITER, epoch=2))
        assert journal.replayed.outcomes == by_ordinal(kept), length
        assert journal.replayed.kept_bytes + journal.replayed.dropped_bytes == length
        journal.append([finish(199)])
        journal.close()
        assert replay(path, SHARD, WRITER) == by_ordinal([*kept, finish(199)]), length


def _stop_of(outcome, bounds):
    kinds = ("finished", "failed")
    return next(stop for _, stop, value in bounds if outcome.ordinal in [value.get(kind) for kind in kinds])


@pytest.mark.parametrize("writer", [WRITER, AFTER_POWER_LOSS])
@pytest.mark.parametrize("syncs", [(), (1,), (0, 1, 2, 3)])
def test_a_bit_flipped_anywhere_is_dropped_with_what_follows_or_refused_at_its_frame(path, writer, syncs):
    write(path, OUTCOMES, syncs=syncs)
    whole = path.read_bytes()
    bounds = frame_bounds(path)
    prefixes = [by_ordinal(OUTCOMES[:length]) for length in range(len(OUTCOMES) + 1)]
    refused = 0

    for position in range(len(whole) * 8):
        flipped = bytearray(whole)
        flipped[position // 8] ^= 1 << position % 8
        with path.open("r+b") as file:
            file.write(flipped)
        try:
            assert replay(path, SHARD, writer) in prefixes
        except JournalCorrupt as exc:
            refused += 1
            damaged = next(start for start, stop, _ in bounds if start <= position // 8 < stop)
            if not str(exc).startswith(f"{path}: byte {damaged}:"):
                raise

    assert refused > 0  # at least the header, which the first mark proves synced


def test_damage_in_the_middle_is_refused_while_no_machine_restarted(path):
    write(path, OUTCOMES)
    offset = _damage_frame(path, 2)

    with pytest.raises(JournalCorrupt, match=f"byte {offset}: .* the machine did not restart"):
        Journal.open(path, SHARD, WRITER)


@pytest.mark.parametrize("writer", [WRITER, AFTER_POWER_LOSS])
def test_a_damaged_first_header_is_refused_whenever_frames_follow_it(path, writer):
    write(path, OUTCOMES)
    content = bytearray(path.read_bytes())
    _, stop, _ = frame_bounds(path)[0]
    content[stop - 1] ^= 1  # its newline: the mark behind it, which tells of its sync, goes with it
    path.write_bytes(content)

    with pytest.raises(JournalCorrupt, match="byte 0: "):
        Journal.open(path, SHARD, writer)
    assert path.read_bytes() == content


def test_damage_that_a_mark_proves_synced_is_refused_after_a_restart(path):
    write(path, OUTCOMES, syncs=(1,))
    offset = _damage_frame(path, 3)
    before = path.read_bytes()

    with pytest.raises(JournalCorrupt, match=f"byte {offset}: .* were synced"):
        Journal.open(path, SHARD, AFTER_POWER_LOSS)
    assert path.read_bytes() == before


def test_a_hole_that_power_loss_tore_is_dropped_with_what_follows(path):
    write(path, OUTCOMES, syncs=(0,))
    with path.open("rb") as file:
        values = [frame.value for frame in scan_frames(file)]
    assert [next(iter(value)) for value in values] == [
        "plan",
        "synced",
        "finished",
        "synced",
        "failed",
        "finished",
        "finished",
    ]
    start, stop, _ = frame_bounds(path)[4]
    content = bytearray(path.read_bytes())
    content[start:stop] = bytes(stop - start)
    path.write_bytes(content)

    journal = Journal.open(path, SHARD, AFTER_POWER_LOSS)

    assert journal.replayed.outcomes == by_ordinal(OUTCOMES[:1])
    journal.append(OUTCOMES[1:])
    journal.close()
    assert replay(path, SHARD, AFTER_POWER_LOSS) == by_ordinal(OUTCOMES)


def test_power_loss_never_takes_a_synced_sample_and_never_blocks_the_next_run(path):
    write(path, OUTCOMES, syncs=(1,))
    content = path.read_bytes()
    bounds = frame_bounds(path)
    synced = bounds[-2][0]  # nothing after the second sample was synced
    assert bounds[-2][2] == {"finished": 101} | bounds[-2][2]

    for start in range(synced, len(content), 3):
        for stop in range(start + 1, len(content) + 1, 3):
            with path.open("r+b") as file:
                file.write(content[:start] + bytes(stop - start) + content[stop:])
            outcomes = replay(path, SHARD, AFTER_POWER_LOSS)
            assert outcomes.items() >= by_ordinal(OUTCOMES[:2]).items()
            assert outcomes.items() <= by_ordinal(OUTCOMES).items()


def test_the_cut_is_on_the_disk_before_anything_is_made_again(path, monkeypatch):
    write(path, OUTCOMES)
    path.write_bytes(path.read_bytes()[:-5])
    calls = []
    for name in ("ftruncate", "write", "fdatasync", "fsync"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: calls.append(name) or real(*args))

    Journal.open(path, SHARD, replace(WRITER, epoch=2))

    assert calls == ["ftruncate", "write", "fdatasync", "fsync"]


def test_a_frame_of_another_plan_or_shard_is_refused(path):
    write(path, OUTCOMES)

    with pytest.raises(JournalCorrupt, match="byte 0: the header names another plan, c0ffee"):
        replay(path, SHARD, replace(WRITER, plan_digest="decaf"))
    with pytest.raises(JournalCorrupt, match="byte 0: the header names another shard, 7"):
        replay(path, replace(SHARD, number=8), WRITER)
    with pytest.raises(JournalCorrupt, match="sample 103 is not in shard 7"):
        replay(path, replace(SHARD, stop=103), WRITER)


def test_an_ordinal_of_another_shard_is_never_written(path):
    journal = Journal.open(path, SHARD, WRITER)

    with pytest.raises(ValueError, match="sample 200 is not in shard 7"):
        journal.append([finish(100), finish(200)])
    journal.close()

    assert replay(path, SHARD, WRITER) == {}


def test_the_same_sample_twice_is_accepted_and_contradicted_is_refused(path):
    write(path, [finish(100), finish(100)])
    assert replay(path, SHARD, WRITER) == {100: finish(100)}

    write(path, [finish(100, "nein")])
    with pytest.raises(JournalCorrupt, match="sample 100 was already finished with different content"):
        replay(path, SHARD, WRITER)


def test_a_journal_without_header_or_with_unknown_frames_is_refused(path):
    path.write_bytes(encode_frame({"failed": 100, "code": "x", "message": "y"}))
    with pytest.raises(JournalCorrupt, match="does not begin with a header"):
        replay(path, SHARD, WRITER)

    path.write_bytes(encode_frame({"finished": 100, "text": "of a later version"}))
    with pytest.raises(JournalCorrupt, match="this version writes no such frame"):
        replay(path, SHARD, WRITER)


def test_repair_drops_exactly_the_damaged_frames(path):
    write(path, OUTCOMES, syncs=(0, 1, 2))
    samples = [place for place, (_, _, value) in enumerate(frame_bounds(path)) if "synced" not in value]
    offset = _damage_frame(path, samples[2])

    damages = repair_journal(path, SHARD, replace(WRITER, epoch=2))

    assert [damage.offset for damage in damages] == [offset]
    assert replay(path, SHARD, WRITER) == by_ordinal([OUTCOMES[0], *OUTCOMES[2:]])
    assert repair_journal(path, SHARD, replace(WRITER, epoch=3)) == ()


def test_repair_keeps_the_samples_behind_a_damaged_header(path):
    write(path, OUTCOMES)
    _damage_frame(path, 0)

    repair_journal(path, SHARD, WRITER)

    assert replay(path, SHARD, WRITER) == by_ordinal(OUTCOMES)


def _damage_frame(path, place):
    """Flip a bit in the middle of a frame; return the offset of the frame."""
    start, stop, _ = frame_bounds(path)[place]
    content = bytearray(path.read_bytes())
    content[(start + stop) // 2] ^= 1
    path.write_bytes(content)
    return start


def test_short_writes_are_continued(path, monkeypatch):
    real_write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real_write(fd, bytes(data[:7])))

    write(path, OUTCOMES)

    assert replay(path, SHARD, WRITER) == by_ordinal(OUTCOMES)


def test_a_full_disk_ends_the_journal_and_keeps_what_was_whole(path, monkeypatch):
    journal = Journal.open(path, SHARD, WRITER)
    journal.append(OUTCOMES[:2])
    room = [len(encode_frame({"synced": 99})) + 140]

    def write_until_full(fd, data, real_write=os.write):
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = real_write(fd, bytes(data[: room[0]]))
        room[0] -= written
        return written

    monkeypatch.setattr(os, "write", write_until_full)
    with pytest.raises(StorageFailed, match=r"No space left on device\n.*run the same command again"):
        journal.append(OUTCOMES[2:])
    monkeypatch.undo()

    with pytest.raises(StorageFailed, match="accepts no more data"):
        journal.append(OUTCOMES[2:])
    with pytest.raises(StorageFailed, match="accepts no more data"):
        journal.sync()
    replayed = read_journal(path, SHARD, WRITER)
    assert replayed.dropped_bytes > 0
    assert replayed.outcomes == by_ordinal(OUTCOMES[:3])


def test_a_failed_sync_is_never_tried_again(path, monkeypatch):
    journal = Journal.open(path, SHARD, WRITER)
    journal.append(OUTCOMES)
    calls = []

    def fail(fd):
        calls.append(fd)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(StorageFailed, match=f"could not fdatasync {path}: Input/output error"):
        journal.sync()
    with pytest.raises(StorageFailed, match="accepts no more data"):
        journal.sync()
    assert len(calls) == 1


def fail_sync(journal, monkeypatch):
    def fail(fd):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patches:
        patches.setattr(os, "fdatasync", fail)
        with pytest.raises(StorageFailed):
            journal.sync()
    journal.close()


@pytest.mark.parametrize("lost", [(2,), (3,), (4,), (1, 4)])
def test_what_a_failed_sync_lost_is_made_again_under_the_same_boot(path, monkeypatch, lost):
    journal = Journal.open(path, SHARD, WRITER)
    journal.append(OUTCOMES[:1])
    journal.sync()
    journal.append(OUTCOMES[1:])
    fail_sync(journal, monkeypatch)
    # 0 header, 1 mark, 2 sample, synced up to here; 3 mark, 4 to 6 samples, 7 an empty line, 8 the last word
    content = bytearray(path.read_bytes())
    for number in lost:
        start, stop, _ = frame_bounds(path)[2 + number]
        content[start:stop] = bytes(stop - start)
    path.write_bytes(content)

    again = Journal.open(path, SHARD, replace(WRITER, epoch=2))

    assert again.replayed.outcomes == by_ordinal(OUTCOMES[: max(1, lost[0] - 1)])
    assert not read_journal(path, SHARD, WRITER).is_doubtful
    again.append(OUTCOMES)
    again.close()
    assert replay(path, SHARD, WRITER) == by_ordinal(OUTCOMES)


def test_what_was_synced_before_a_failed_sync_is_no_less_refused(path, monkeypatch):
    journal = Journal.open(path, SHARD, WRITER)
    journal.append(OUTCOMES[:1])
    journal.sync()
    journal.append(OUTCOMES[1:])
    fail_sync(journal, monkeypatch)
    offset = _damage_frame(path, 2)

    with pytest.raises(JournalCorrupt, match=f"byte {offset}: "):
        Journal.open(path, SHARD, WRITER)


def test_what_survives_a_failed_sync_is_written_anew(path, monkeypatch):
    journal = Journal.open(path, SHARD, WRITER)
    journal.append(OUTCOMES)
    fail_sync(journal, monkeypatch)
    before = path.stat().st_ino

    again = Journal.open(path, SHARD, replace(WRITER, epoch=2))

    assert again.replayed.outcomes == by_ordinal(OUTCOMES)
    assert path.stat().st_ino != before, "the kernel may take the pages of the old file for written"


def test_a_sync_is_due_after_a_second_or_after_64_samples(path):
    journal = Journal.open(path, SHARD, WRITER)
    assert not journal.sync_if_due(0.0)

    journal.append([finish(100)])
    assert not journal.sync_if_due(10.0)
    assert not journal.sync_if_due(10.0 + SYNC_SECONDS - 0.01)
    assert journal.sync_if_due(10.0 + SYNC_SECONDS)

    journal.append([finish(ordinal) for ordinal in range(101, 101 + SYNC_SAMPLES)])
    assert not journal.sync_if_due(20.0)
    assert journal.sync_if_due(20.0 + SYNC_PAUSE_SECONDS)
    assert not journal.sync_if_due(100.0)


def test_a_sync_with_nothing_new_costs_nothing(path, monkeypatch):
    journal = Journal.open(path, SHARD, WRITER)
    monkeypatch.setattr(os, "fdatasync", lambda fd: pytest.fail("there was nothing to sync"))

    journal.sync()
