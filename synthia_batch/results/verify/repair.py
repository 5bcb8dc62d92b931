"""repair_run(): removes only what is damaged from a run directory, so that the run can resume.

A shard with a damaged part is reopened, as for a retry: its sound samples are journaled before the part
is removed, so that a crash at any moment leaves either the damage or an unfinished shard. The manifest
is removed before everything else. Repeating a killed repair finishes it.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from synthia_batch.core.errors import IntegrityError
from synthia_batch.core.types import Finished, Shard
from synthia_batch.results.verify.facts import RunFacts, find_highest_epoch, read_facts, refuse_other_format
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
    """Result of a repair: a line per file in `done`, and what it cannot fix in `remaining`.

    `is_to_run`: the run is incomplete; running it again regenerates what was dropped.
    """

    done: tuple[str, ...]
    remaining: tuple[Finding, ...]
    is_to_run: bool


def repair_run(directory: Path, on_progress: OnProgress) -> RepairResult:
    """Remove damaged and leftover files from the run in `directory`. Keeps everything sound."""
    try:
        facts = read_facts(directory)
    except IntegrityError:
        return _remove_plan(RunDir(directory))
    refuse_other_format(facts)
    lock = RunLock(facts.run_dir, datetime.now().astimezone())
    lock.take()
    try:
        found = check_run(facts, on_progress)
        if not (found.findings or found.temporary_files or found.leftover_journals):
            return RepairResult(done=(), remaining=(), is_to_run=found.manifest is None)
        is_lost = any(finding.kind is FindingKind.OWNER for finding in found.findings)
        epoch = lock.begin_epoch(after=find_highest_epoch(facts) if is_lost else None).epoch
        facts = replace(facts, writer=replace(facts.writer, epoch=epoch))
        done = [f"{facts.name(facts.run_dir.owner)}: rewritten, with epoch {epoch}"] if is_lost else []
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
    """Remove a damaged plan. The headers of ledger and journals guard against a different one."""
    lock = RunLock(run_dir, datetime.now().astimezone())
    lock.take()
    try:
        remove_file(run_dir.plan)
    finally:
        lock.release()
    name = run_dir.plan.relative_to(run_dir.root).as_posix()
    done = f"{name}: removed; run the original job on the same input to rewrite it"
    return RepairResult(done=(done,), remaining=(), is_to_run=True)


def _repair_ledger(facts: RunFacts, found: RunCheck) -> Iterator[str]:
    """Rewrite a damaged ledger. This comes first, since other checks depend on the ledger."""
    damaged = [finding for finding in found.findings if finding.kind is FindingKind.LEDGER]
    if not damaged:
        return
    known = found.manifest.list_entries(facts.shards, facts.writer.epoch) if found.manifest else {}
    repair_ledger(facts.run_dir.ledger, facts.writer, known)
    source = "from its sound frames and the manifest" if known else "from its sound frames"
    yield f"{damaged[0].file}: rewritten {source}"


def _repair(facts: RunFacts, found: RunCheck) -> Iterator[str]:
    run_dir = facts.run_dir
    if any(finding.kind in (FindingKind.PART, FindingKind.MANIFEST) for finding in found.findings):
        existed = run_dir.manifest.exists()
        withdraw_manifest(run_dir)
        if existed:
            name = facts.name(run_dir.manifest)
            yield f"{name}: removed with the card; the next run rewrites both"
    for check in found.checks:
        yield from _repair_shard(facts, check)
    for finding in found.findings:
        if finding.kind is FindingKind.RECORD:
            remove_file(run_dir.root / finding.file)
            yield f"{finding.file}: removed; it is rewritten when needed"
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
        write_journal(journal, shard, facts.writer, kept)
        lost = shard.samples - len(kept)
        yield f"shard {shard.number}: {lost} of {shard.samples} samples will be regenerated"
    yield from _remove_parts(facts, damaged)


def _repair_journal(facts: RunFacts, shard: Shard) -> Iterator[str]:
    path = facts.run_dir.journal(shard)
    for damage in repair_journal(path, shard, facts.writer):
        yield (
            f"{facts.name(path)}: byte {damage.offset}: {damage.length} bytes dropped; "
            "their samples will be regenerated"
        )


def _salvage(facts: RunFacts, shard: Shard, damaged: Sequence[Path]) -> list[Finished]:
    """Return the samples of the shard's data part if it is sound. Failed samples are regenerated."""
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
