"""The ledger of parts: what was recorded comes back, a torn tail is dropped, damage is refused."""

import os

import pytest

from synthia_batch.errors import IntegrityError
from synthia_batch.store.attempt import Attempt
from synthia_batch.store.intents import Intent, Intents, PartEntry, read_intents

ATTEMPT = Attempt(plan_digest="c0ffee", epoch=3, boot=None)
DATA = PartEntry(sha256="ab" * 32, bytes=1234, rows=20)
FIRST = Intent(shard=0, epoch=3, data=DATA, failed=None)
SECOND = Intent(shard=1, epoch=3, data=DATA, failed=PartEntry(sha256="cd" * 32, bytes=99, rows=1))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "intents.wal"


def write(path, *intents):
    ledger = Intents.open(path, ATTEMPT)
    for intent in intents:
        ledger.append(intent)
    ledger.close()


def read(path):
    return read_intents(path, ATTEMPT.plan_digest).latest


def test_what_was_recorded_comes_back(path):
    write(path, FIRST)
    write(path, SECOND)

    assert read(path) == {0: FIRST, 1: SECOND}
    assert Intents.open(path, ATTEMPT).latest == read(path)


def test_no_file_is_an_empty_ledger(path):
    assert read(path) == {}


def test_a_later_intent_replaces_the_earlier_one(path):
    again = Intent(shard=1, epoch=4, data=DATA, failed=None)

    write(path, SECOND, FIRST, again)

    assert read(path) == {0: FIRST, 1: again}


def test_a_withdrawn_shard_has_no_parts(path):
    ledger = Intents.open(path, ATTEMPT)
    ledger.append(FIRST)
    ledger.append(SECOND)
    ledger.withdraw(0)

    assert ledger.latest == read(path) == {1: SECOND}


def test_an_intent_is_on_the_disk_when_append_returns(path, monkeypatch):
    ledger = Intents.open(path, ATTEMPT)
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
            Intents.open(path, ATTEMPT)
        assert path.read_bytes() == flipped


def test_the_ledger_of_another_plan_is_refused(path):
    write(path, FIRST)

    with pytest.raises(IntegrityError, match="the ledger is of another plan, c0ffee"):
        read_intents(path, "decaf")
