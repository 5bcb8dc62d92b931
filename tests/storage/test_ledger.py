"""The ledger of parts: what was recorded comes back, a torn tail is dropped, damage is refused."""

import errno
import os

import pytest

from synthia_batch.errors import IntegrityError, StorageFailed
from synthia_batch.storage.ledger import PartEntry, PartLedger, ShardEntry, read_ledger
from synthia_batch.storage.lock import WriterEpoch

WRITER = WriterEpoch(plan_digest="c0ffee", epoch=3, boot=None)
DATA = PartEntry(sha256="ab" * 32, bytes=1234, rows=20, rows_digest="ef")
FIRST = ShardEntry(shard=0, epoch=3, data=DATA, failed=None)
SECOND = ShardEntry(
    shard=1, epoch=3, data=DATA, failed=PartEntry(sha256="cd" * 32, bytes=99, rows=1, rows_digest="01")
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "intents.wal"


def write(path, *entries):
    ledger = PartLedger.open(path, WRITER)
    for shard_entry in entries:
        ledger.append(shard_entry)
    ledger.close()


def read(path):
    return read_ledger(path, WRITER.plan_digest).latest


def test_what_was_recorded_comes_back(path):
    write(path, FIRST)
    write(path, SECOND)

    assert read(path) == {0: FIRST, 1: SECOND}
    assert PartLedger.open(path, WRITER).latest == read(path)


def test_no_file_is_an_empty_ledger(path):
    assert read(path) == {}


def test_a_later_intent_replaces_the_earlier_one(path):
    again = ShardEntry(shard=1, epoch=4, data=DATA, failed=None)

    write(path, SECOND, FIRST, again)

    assert read(path) == {0: FIRST, 1: again}


def test_an_intent_is_on_the_disk_when_append_returns(path, monkeypatch):
    ledger = PartLedger.open(path, WRITER)
    calls = []
    for name in ("write", "fdatasync"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: calls.append(name) or real(*args))

    ledger.append(FIRST)

    assert calls == ["write", "fdatasync"]


def test_cut_at_every_byte_the_whole_intents_remain(path):
    write(path)
    header = path.stat().st_size
    write(path, FIRST)
    first = path.stat().st_size
    write(path, SECOND)
    whole = path.read_bytes()

    for length in range(header, len(whole)):
        path.write_bytes(whole[:length])
        assert read(path) == ({0: FIRST} if length >= first else {})
        write(path, SECOND)
        assert read(path)[1] == SECOND


def test_a_bit_flipped_before_the_last_frame_is_refused(path):
    write(path, FIRST)
    before_last = path.stat().st_size
    write(path, SECOND)
    whole = path.read_bytes()

    # Not its newline: without it the last two are one line, and the parts of the first of them are
    # refused as foreign instead.
    for position in range((before_last - 1) * 8):
        flipped = bytearray(whole)
        flipped[position // 8] ^= 1 << position % 8
        with path.open("r+b") as file:
            file.write(flipped)
        with pytest.raises(IntegrityError, match=r"intents.wal: byte \d+: the frame fails its checksum"):
            PartLedger.open(path, WRITER)
        assert path.read_bytes() == flipped


def test_the_ledger_of_another_plan_is_refused(path):
    write(path, FIRST)

    with pytest.raises(IntegrityError, match="the ledger belongs to another plan, c0ffee"):
        read_ledger(path, "decaf")


@pytest.mark.parametrize("is_lost", [False, True])
def test_the_intent_of_a_failed_sync_is_written_anew_or_forgotten(path, monkeypatch, is_lost):
    write(path, FIRST)
    ledger = PartLedger.open(path, WRITER)
    start = path.stat().st_size

    def fail(fd):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patches:
        patches.setattr(os, "fdatasync", fail)
        with pytest.raises(StorageFailed):
            ledger.append(SECOND)
    ledger.close()
    if is_lost:
        content = path.read_bytes()
        stop = content.index(b"\n", start) + 1
        path.write_bytes(content[:start] + bytes(stop - start) + content[stop:])

    again = PartLedger.open(path, WRITER)

    assert again.latest == ({0: FIRST} if is_lost else {0: FIRST, 1: SECOND})
    again.append(SECOND)
    again.close()
    assert read(path) == {0: FIRST, 1: SECOND}
    assert not read_ledger(path, WRITER.plan_digest).is_doubtful
