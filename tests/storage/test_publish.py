"""The publish protocol, interrupted at every system call, and what recovery makes of it."""

import errno
import os
from contextlib import suppress
from dataclasses import dataclass, replace

import pytest

from synthia_batch.core.counts import Tally
from synthia_batch.core.types import Failed, Finished, Shard
from synthia_batch.errors import IntegrityError, StorageFailed
from synthia_batch.storage.journal.reader import replay
from synthia_batch.storage.journal.writer import Journal, write_journal
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.ledger import PartLedger, read_ledger
from synthia_batch.storage.lock import WriterEpoch
from synthia_batch.storage.publish import EncodedPart, EncodedShard, publish_shard
from synthia_batch.storage.recovery import Published, Unfinished, check_parts, inspect_shard, remove_leftovers

SHARD = Shard(number=1, count=3, first_row=4, stop_row=8, first=4, stop=8)
WRITER = WriterEpoch(plan_digest="c0ffee", epoch=1, boot="this boot")
FINISHED = [
    Finished(
        ordinal=ordinal,
        response=f"answer {ordinal}",
        reasoning=None,
        finish_reason="stop",
        prompt_tokens=3,
        completion_tokens=2,
    )
    for ordinal in range(4, 8)
]
ALL_FINISHED = FINISHED
ONE_FAILED = [*FINISHED[:3], Failed(ordinal=7, code="prompt_too_long", message="9 tokens")]
ALL_FAILED = [Failed(ordinal=ordinal, code="prompt_too_long", message="9 tokens") for ordinal in range(4, 8)]
MIXTURES = {"all finished": ALL_FINISHED, "one failed": ONE_FAILED, "all failed": ALL_FAILED}

CALLS = ("open", "write", "fsync", "fdatasync", "ftruncate", "rename", "unlink", "mkdir", "close")


class Killed(BaseException):
    """What no handler of the package catches: as near to SIGKILL as one process can come to itself."""


@dataclass
class Killer:
    """Stops the code under test at its system call number `at`: before it, or in the middle of a write."""

    at: int
    calls: int = 0

    def install(self, monkeypatch):
        for name in CALLS:
            monkeypatch.setattr(os, name, self._wrap(name, getattr(os, name)))

    def _wrap(self, name, real):
        def call(*args, **kwargs):
            self.calls += 1
            if self.calls < self.at:
                return real(*args, **kwargs)
            if self.calls == self.at and name == "write":
                real(args[0], bytes(args[1])[: len(args[1]) // 2])
            if name == "close":
                real(*args)  # the kernel closes the files of the dead
            raise Killed

        return call


@pytest.fixture
def run_dir(tmp_path):
    made = RunDir(tmp_path / "run")
    made.create()
    return made


@pytest.fixture
def quick_syncs(monkeypatch):
    """Syncs that do nothing: they cost time, and a process that dies loses nothing without them."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(os, "fdatasync", lambda fd: None)


def encode(outcomes):
    """Stands for part.py: the same bytes for the same outcomes, in any order."""
    ordered = sorted(outcomes, key=lambda outcome: outcome.ordinal)
    finished = [outcome for outcome in ordered if isinstance(outcome, Finished)]
    failed = [outcome for outcome in ordered if isinstance(outcome, Failed)]
    return EncodedShard(shard=SHARD, data=_encode_part(finished), failed=_encode_part(failed))


def _encode_part(outcomes):
    return (
        EncodedPart(content=repr(outcomes).encode(), rows=len(outcomes), rows_digest="ef")
        if outcomes
        else None
    )


def inspect(run_dir, writer=WRITER):
    return inspect_shard(run_dir, SHARD, read_ledger(run_dir.ledger, writer.plan_digest).latest, writer)


def run_to_the_end(run_dir, outcomes, writer):
    """What a run does with a shard: recover, make what is missing, publish."""
    run_dir.create()
    ledger = PartLedger.open(run_dir.ledger, writer)
    state = inspect_shard(run_dir, SHARD, ledger.latest, writer)
    check_parts(run_dir, [state], lambda done, total: None)
    remove_leftovers(run_dir, [state])
    made = []
    if isinstance(state, Unfinished):
        journal = Journal.open(run_dir.journal(SHARD), SHARD, writer)
        known = journal.replayed.outcomes
        for outcome in outcomes:
            if outcome.ordinal not in known:
                journal.append([outcome])
                made.append(outcome.ordinal)
        finished = {**known, **{outcome.ordinal: outcome for outcome in outcomes}}
        publish_shard(run_dir, encode(finished.values()), journal, ledger)
    ledger.close()
    return made


def files_of(run_dir):
    """Everything but the memory of attempts, by relative path."""
    paths = [path for path in run_dir.root.rglob("*") if path.is_file() and path != run_dir.ledger]
    return {str(path.relative_to(run_dir.root)): path.read_bytes() for path in paths}


@pytest.mark.parametrize("outcomes", MIXTURES.values(), ids=MIXTURES)
def test_a_published_shard_has_its_parts_and_no_journal(run_dir, outcomes):
    run_to_the_end(run_dir, outcomes, WRITER)

    encoded = encode(outcomes)
    expected = {"data/train-00001-of-00003.parquet": encoded.data}
    expected["failed/failed-00001-of-00003.parquet"] = encoded.failed
    assert files_of(run_dir) == {name: part.content for name, part in expected.items() if part}
    state = inspect(run_dir)
    assert isinstance(state, Published)
    assert not state.has_leftover_journal
    assert state.shard_entry.data is None or state.shard_entry.data.rows == encoded.data.rows


@pytest.mark.usefixtures("quick_syncs")
@pytest.mark.parametrize("outcomes", MIXTURES.values(), ids=MIXTURES)
def test_killed_at_every_system_call_the_next_run_ends_with_the_same_bytes(tmp_path, monkeypatch, outcomes):
    expected = _count_and_run(tmp_path / "whole", outcomes, monkeypatch)

    for at in range(1, expected.calls + 1):
        run_dir = RunDir(tmp_path / f"killed-{at}")
        before = _kill(run_dir, outcomes, WRITER, at, monkeypatch)
        made = run_to_the_end(run_dir, outcomes, replace(WRITER, epoch=2))
        assert files_of(run_dir) == expected.files, at
        assert not before & set(made), f"killed at call {at}, a finished sample was made again"


@pytest.mark.usefixtures("quick_syncs")
def test_killed_again_at_every_system_call_of_the_recovery_too(tmp_path, monkeypatch):
    expected = _count_and_run(tmp_path / "whole", ONE_FAILED, monkeypatch)
    # Every third point of the run, and from there every point of the recovery.
    for first in range(1, expected.calls + 1, 3):
        for second in range(1, 200):
            run_dir = RunDir(tmp_path / f"killed-{first}-{second}")
            _kill(run_dir, ONE_FAILED, WRITER, first, monkeypatch)
            killer = Killer(second)
            before = _kill(run_dir, ONE_FAILED, replace(WRITER, epoch=2), killer, monkeypatch)
            if killer.calls < second:
                break
            made = run_to_the_end(run_dir, ONE_FAILED, replace(WRITER, epoch=3))
            assert files_of(run_dir) == expected.files, (first, second)
            assert not before & set(made), (first, second)


@dataclass
class Expected:
    calls: int
    files: dict[str, bytes]


def _count_and_run(root, outcomes, monkeypatch):
    run_dir = RunDir(root)
    killer = Killer(at=1_000_000)
    with monkeypatch.context() as patch:
        killer.install(patch)
        run_to_the_end(run_dir, outcomes, WRITER)
    return Expected(calls=killer.calls, files=files_of(run_dir))


def _kill(run_dir, outcomes, writer, at, monkeypatch):
    """Run until the system call `at`; return the ordinals that were finished by then."""
    killer = at if isinstance(at, Killer) else Killer(at)
    with monkeypatch.context() as patch:
        killer.install(patch)
        with suppress(Killed):
            run_to_the_end(run_dir, outcomes, writer)
    if isinstance(inspect(run_dir), Published):
        return {outcome.ordinal for outcome in outcomes}
    return set(replay(run_dir.journal(SHARD), SHARD, WRITER))


def test_the_steps_are_taken_in_the_order_that_durability_needs(run_dir, monkeypatch):
    ledger = PartLedger.open(run_dir.ledger, WRITER)
    journal = Journal.open(run_dir.journal(SHARD), SHARD, WRITER)
    journal.append(ONE_FAILED)
    steps = _record_steps(run_dir, monkeypatch)

    publish_shard(run_dir, encode(ONE_FAILED), journal, ledger)

    failed, data = "failed/{}failed-00001-of-00003.parquet{}", "data/{}train-00001-of-00003.parquet{}"
    assert steps == [
        "fdatasync .synthia/journal/shard-00001.wal",
        "write .synthia/intents.wal",
        "fdatasync .synthia/intents.wal",
        "mkdir failed",
        "fsync .",
        *_steps_of_part(failed),
        "fsync .",
        *_steps_of_part(data),
        "unlink .synthia/journal/shard-00001.wal",
    ]


def test_a_part_that_is_no_more_is_gone_from_the_disk_before_the_journal_is(run_dir, monkeypatch):
    run_to_the_end(run_dir, ONE_FAILED, WRITER)
    retry = replace(WRITER, epoch=2)
    write_journal(run_dir.journal(SHARD), SHARD, retry, FINISHED)
    journal = Journal.open(run_dir.journal(SHARD), SHARD, retry)
    ledger = PartLedger.open(run_dir.ledger, retry)
    steps = _record_steps(run_dir, monkeypatch)

    publish_shard(run_dir, encode(FINISHED), journal, ledger)

    removal = ["unlink failed/failed-00001-of-00003.parquet", "fsync failed"]
    assert steps[2:4] == removal  # after the intent
    assert steps[-1] == "unlink .synthia/journal/shard-00001.wal"


def _steps_of_part(name):
    temporary = name.format(".", ".tmp")
    path = name.format("", "")
    directory = path.split("/")[0]
    return [f"write {temporary}", f"fsync {temporary}", f"rename {path}", f"fsync {directory}"]


def _record_steps(run_dir, monkeypatch):
    steps = []

    def record(name, place):
        real = getattr(os, name)

        def call(*args):
            target = args[place]
            path = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else target
            result = real(*args)
            steps.append(f"{name} {os.path.relpath(path, run_dir.root)}")
            return result

        monkeypatch.setattr(os, name, call)

    for name, place in {"write": 0, "fsync": 0, "fdatasync": 0, "rename": 1, "unlink": 0, "mkdir": 0}.items():
        record(name, place)
    return steps


def test_parts_that_do_not_hold_every_sample_are_not_published(run_dir):
    ledger = PartLedger.open(run_dir.ledger, WRITER)
    journal = Journal.open(run_dir.journal(SHARD), SHARD, WRITER)

    with pytest.raises(ValueError, match="shard 1 has 4 samples, its parts have 3"):
        publish_shard(run_dir, encode(FINISHED[:3]), journal, ledger)

    assert ledger.latest == {}
    assert list(run_dir.data.iterdir()) == []


@pytest.mark.parametrize("call", ["fsync", "fdatasync", "rename", "write", "unlink"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_failing_disk_ends_the_publication_and_loses_nothing(run_dir, monkeypatch, call, code):
    ledger = PartLedger.open(run_dir.ledger, WRITER)
    journal = Journal.open(run_dir.journal(SHARD), SHARD, WRITER)
    journal.append(ONE_FAILED)
    calls = []

    def fail(*args):
        calls.append(args)
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(StorageFailed, match="run the same command again") as caught:
            publish_shard(run_dir, encode(ONE_FAILED), journal, ledger)
        assert isinstance(caught.value.__cause__, OSError)
        if call in ("fsync", "fdatasync"):
            assert len(calls) == 1

    assert run_to_the_end(run_dir, ONE_FAILED, replace(WRITER, epoch=2)) == []
    assert isinstance(inspect(run_dir), Published)


def test_a_full_disk_is_not_kept_full_by_half_a_part(run_dir, monkeypatch):
    ledger = PartLedger.open(run_dir.ledger, WRITER)
    journal = Journal.open(run_dir.journal(SHARD), SHARD, WRITER)
    journal.append(FINISHED)
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))

    with pytest.raises(StorageFailed):
        publish_shard(run_dir, encode(FINISHED), journal, ledger)

    assert list(run_dir.data.iterdir()) == []


def test_a_journal_that_power_brought_back_is_removed_again(run_dir):
    journal = Journal.open(run_dir.journal(SHARD), SHARD, WRITER)
    journal.append(FINISHED)
    content = run_dir.journal(SHARD).read_bytes()
    run_to_the_end(run_dir, FINISHED, WRITER)
    run_dir.journal(SHARD).write_bytes(content)

    assert inspect(run_dir).has_leftover_journal
    assert run_to_the_end(run_dir, FINISHED, replace(WRITER, epoch=2)) == []
    assert not run_dir.journal(SHARD).exists()


def test_a_part_that_power_took_is_published_again_from_the_journal(run_dir):
    journal = Journal.open(run_dir.journal(SHARD), SHARD, WRITER)
    journal.append(ONE_FAILED)
    content = run_dir.journal(SHARD).read_bytes()
    run_to_the_end(run_dir, ONE_FAILED, WRITER)
    expected = files_of(run_dir)
    run_dir.journal(SHARD).write_bytes(content)
    run_dir.data_part(SHARD).unlink()

    state = inspect(run_dir)
    assert (state.finished, state.failed, state.dropped_bytes) == (3, 1, 0)
    assert run_to_the_end(run_dir, ONE_FAILED, replace(WRITER, epoch=2)) == []
    assert files_of(run_dir) == expected


def test_a_journal_opened_after_the_publication_goes_before_the_parts(run_dir):
    run_to_the_end(run_dir, ONE_FAILED, WRITER)
    write_journal(run_dir.journal(SHARD), SHARD, replace(WRITER, epoch=2), FINISHED[:3])

    state = inspect(run_dir)
    assert state == Unfinished(shard=SHARD, tally=Tally(finished=3), dropped_bytes=0)
    assert run_to_the_end(run_dir, FINISHED, replace(WRITER, epoch=3)) == [7]
    assert files_of(run_dir) == {"data/train-00001-of-00003.parquet": encode(FINISHED).data.content}


@pytest.mark.parametrize("kind", ["data_part", "failed_part"])
def test_a_missing_part_is_refused_and_nothing_touched(run_dir, kind):
    run_to_the_end(run_dir, ONE_FAILED, WRITER)
    path = getattr(run_dir, kind)(SHARD)
    path.unlink()
    before = files_of(run_dir)

    with pytest.raises(IntegrityError, match=f"{path} was published and is missing; nothing was touched"):
        inspect(run_dir)
    assert files_of(run_dir) == before


def test_a_part_of_another_size_is_refused(run_dir):
    run_to_the_end(run_dir, ALL_FINISHED, WRITER)
    with run_dir.data_part(SHARD).open("ab") as part:
        part.write(b"x")

    with pytest.raises(IntegrityError, match=r"was altered: expected \d+ bytes as published, got"):
        inspect(run_dir)


def test_an_altered_part_of_the_same_size_is_refused_by_its_checksum(run_dir):
    run_to_the_end(run_dir, ALL_FINISHED, WRITER)
    state = inspect(run_dir)
    size = run_dir.data_part(SHARD).stat().st_size
    progress = []
    check_parts(run_dir, [state], lambda done, total: progress.append((done, total)))
    assert progress[-1] == (size, size)

    content = bytearray(run_dir.data_part(SHARD).read_bytes())
    content[-1] ^= 1
    run_dir.data_part(SHARD).write_bytes(content)

    with pytest.raises(IntegrityError, match=r"train-00001-of-00003\.parquet was altered: its SHA-256"):
        check_parts(run_dir, [state], lambda done, total: None)


def test_a_part_that_no_intent_names_is_refused(run_dir):
    run_dir.data_part(SHARD).write_bytes(b"somebody else's")
    with pytest.raises(IntegrityError, match="is not of this run"):
        inspect(run_dir)
    run_dir.data_part(SHARD).unlink()

    run_to_the_end(run_dir, ALL_FINISHED, WRITER)
    run_dir.failed.mkdir()
    run_dir.failed_part(SHARD).write_bytes(b"somebody else's")
    with pytest.raises(IntegrityError, match="is not of this run"):
        inspect(run_dir)


def test_temporary_files_are_swept_up_and_other_files_left_alone(run_dir):
    run_dir.failed.mkdir()
    leftovers = [
        run_dir.data / ".train-00001-of-00003.parquet.tmp",
        run_dir.failed / ".failed-00001-of-00003.parquet.tmp",
        run_dir.root / ".manifest.json.tmp",
        run_dir.hidden / ".owner.json.tmp",
        run_dir.journals / ".shard-00001.wal.tmp",
    ]
    others = [run_dir.root / ".mine.tmp", run_dir.data / "notes.txt"]
    for path in (*leftovers, *others):
        path.write_bytes(b"")

    remove_leftovers(run_dir, [])

    assert [path for path in leftovers if path.exists()] == []
    assert all(path.exists() for path in others)
