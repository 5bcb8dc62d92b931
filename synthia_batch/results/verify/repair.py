"""repair_run(): what is damaged taken out of a run directory, and nothing else, so that a run can go on.

A shard with a damaged part is opened again, as for a retry: a journal of the samples in its sound
part goes first, so that a crash at any moment leaves either the damage or a shard that is to be
made. The manifest goes before everything else. Repeating a repair that was killed finishes it.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from synthia_batch.core.types import Finished, Shard
from synthia_batch.errors import IntegrityError
from synthia_batch.results.verify.facts import RunFacts, find_highest_epoch, list_entries, read_facts
from synthia_batch.results.verify.findings import Finding, FindingKind
from synthia_batch.results.verify.shard import ShardCheck
from synthia_batch.results.verify.verify import OnProgress, RunCheck, check_run
from synthia_batch.storage.atomic import remove_file, sync_directory
from synthia_batch.storage.journal.writer import repair_journal, write_journal
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.ledger import repair_ledger
from synthia_batch.storage.lock import RunLock
from synthia_batch.storage.manifest import withdraw_manifest
from synthia_batch.storage.parts.reader import read_made


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairResult:
    """What a repair came to: `done` says it file by file, `remaining` is what it cannot mend.

    `is_to_run`: the run is not complete, and the next one makes what was dropped.
    """

    done: tuple[str, ...]
    remaining: tuple[Finding, ...]
    is_to_run: bool


def repair_run(directory: Path, on_progress: OnProgress) -> RepairResult:
    """Take what is damaged or left over out of the run in `directory`. Touches nothing that is sound.

    Raises:
        UsageError: It is no run directory.
        RunLocked: A run goes on there.
        StorageFailed: Something cannot be read, written or removed.
    """
    try:
        facts = read_facts(directory)
    except IntegrityError:
        return _remove_plan(RunDir(directory))
    lock = RunLock(facts.run_dir, datetime.now().astimezone())
    lock.take()
    try:
        found = check_run(facts, on_progress)
        if not (found.findings or found.temporary_files or found.leftover_journals):
            is_to_run = found.manifest is None
            return RepairResult(done=(), remaining=(), is_to_run=is_to_run)
        is_lost = any(finding.kind is FindingKind.OWNER for finding in found.findings)
        epoch = lock.begin_epoch(after=find_highest_epoch(facts) if is_lost else None).epoch
        facts = replace(facts, attempt=replace(facts.attempt, epoch=epoch))
        done = [f"{facts.name(facts.run_dir.owner)}: written again, with epoch {epoch}"] if is_lost else []
        done += _repair_ledger(facts, found)
        if done:
            found = check_run(facts, on_progress)
        done += _repair(facts, found)
        return RepairResult(
            done=tuple(done),
            remaining=tuple(
                item for item in found.findings if item.kind in (FindingKind.UNKNOWN, FindingKind.CANARY)
            ),
            is_to_run=not facts.run_dir.manifest.exists(),
        )
    finally:
        lock.release()


def _remove_plan(run_dir: RunDir) -> RepairResult:
    """Remove a damaged plan: the ledger's and the journals' headers say what the next one must be."""
    lock = RunLock(run_dir, datetime.now().astimezone())
    lock.take()
    try:
        remove_file(run_dir.plan)
    finally:
        lock.release()
    name = run_dir.plan.relative_to(run_dir.root).as_posix()
    done = f"{name}: removed; run the job as it was first said, on the same input, to write it again"
    return RepairResult(done=(done,), remaining=(), is_to_run=True)


def _repair_ledger(facts: RunFacts, found: RunCheck) -> Iterator[str]:
    """Write the ledger anew where it is damaged: first of all, since it judges everything else."""
    damaged = [finding for finding in found.findings if finding.kind is FindingKind.LEDGER]
    if not damaged:
        return
    known = list_entries(facts, found.manifest, facts.attempt.epoch) if found.manifest else {}
    repair_ledger(facts.run_dir.ledger, facts.attempt, known)
    source = "from its sound frames and the manifest" if known else "from its sound frames"
    yield f"{damaged[0].file}: written again {source}"


def _repair(facts: RunFacts, found: RunCheck) -> Iterator[str]:
    run_dir = facts.run_dir
    if any(finding.kind in (FindingKind.PART, FindingKind.MANIFEST) for finding in found.findings):
        is_there = run_dir.manifest.exists()
        withdraw_manifest(run_dir)
        if is_there:
            name = facts.name(run_dir.manifest)
            yield f"{name}: removed, and the card with it; the next run writes both again"
    for check in found.checks:
        yield from _repair_shard(facts, check)
    for finding in found.findings:
        if finding.kind is FindingKind.RECORD:
            remove_file(run_dir.root / finding.file)
            yield f"{finding.file}: removed; it is made again when it is needed"
    for path in found.temporary_files:
        remove_file(path)
        yield f"{facts.name(path)}: removed; it was never finished"


def _repair_shard(facts: RunFacts, check: ShardCheck) -> Iterator[str]:
    shard, journal = check.shard, facts.run_dir.journal(check.shard)
    damaged = [facts.run_dir.root / found.file for found in check.findings if found.kind is FindingKind.PART]
    if check.has_leftover_journal:
        remove_file(journal)
        yield f"{facts.name(journal)}: removed; its samples are published"
    elif any(found.kind is FindingKind.JOURNAL for found in check.findings):
        yield from _repair_journal(facts, shard)
    if damaged and check.is_published:
        kept = _salvage(facts, shard, damaged)
        write_journal(journal, shard, facts.attempt, kept)
        lost = shard.samples - len(kept)
        yield f"shard {shard.number}: {lost} of {shard.samples} samples will be made again"
    yield from _remove_parts(facts, damaged)


def _repair_journal(facts: RunFacts, shard: Shard) -> Iterator[str]:
    path = facts.run_dir.journal(shard)
    for damage in repair_journal(path, shard, facts.attempt):
        yield (
            f"{facts.name(path)}: byte {damage.offset}: {damage.length} bytes dropped; "
            "what they said will be made again"
        )


def _salvage(facts: RunFacts, shard: Shard, damaged: Sequence[Path]) -> list[Finished]:
    """Return the samples of the shard's data part where that is sound: failed ones are made again."""
    path = facts.run_dir.data_part(shard)
    if path not in damaged and path.exists():
        with suppress(IntegrityError):
            return list(read_made(path, shard, facts.grid).values())
    return []


def _remove_parts(facts: RunFacts, damaged: Sequence[Path]) -> Iterator[str]:
    for path in damaged:
        if path.exists():
            remove_file(path)
            sync_directory(path.parent)
            yield f"{facts.name(path)}: removed"
