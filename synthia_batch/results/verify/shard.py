"""Checks the files of one shard."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from synthia_batch.core.errors import IntegrityError, JournalCorrupt
from synthia_batch.core.types import Shard
from synthia_batch.results.verify.facts import RunFacts
from synthia_batch.results.verify.findings import Finding, FindingKind, explain_error
from synthia_batch.storage.journal.reader import find_damage, find_last_epoch, read_journal
from synthia_batch.storage.ledger import PartEntry, ShardEntry
from synthia_batch.storage.parts.columns import holds_rows
from synthia_batch.storage.parts.pages import find_page_damage
from synthia_batch.storage.parts.reader import (
    Places,
    describe_sample,
    list_missing,
    number_failed,
    number_made,
    place_data_rows,
    place_failed_rows,
)
from synthia_batch.storage.recovery import check_part


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardCheck:
    """Result of the check of one shard. `samples` and `bytes` are those of the parts that were read.

    `is_published`: its parts, sound or not, are the only copy of its samples.
    `has_leftover_journal`: it also has an unneeded journal.
    """

    shard: Shard
    is_published: bool
    has_leftover_journal: bool = False
    samples: int = 0
    bytes: int = 0
    findings: tuple[Finding, ...] = ()


def check_shard(facts: RunFacts, shard: Shard, shard_entry: ShardEntry | None) -> ShardCheck:
    """Check all files of `shard`; `shard_entry` is its latest ledger entry. Only reads."""
    journal = _check_journal(facts, shard)
    if shard_entry is None:
        return ShardCheck(
            shard=shard, is_published=False, findings=(*journal.findings, *_find_foreign_parts(facts, shard))
        )
    if journal.exists and journal.epoch is not None and journal.epoch > shard_entry.epoch:
        # Reopened after publication: the journal replaces the parts.
        return ShardCheck(shard=shard, is_published=False, findings=journal.findings)
    parts = check_parts_of_shard(facts, shard, shard_entry)
    if not journal.exists:
        return parts
    if parts.findings:
        # Killed during publication: it will be published again from the journal.
        return ShardCheck(shard=shard, is_published=False, findings=journal.findings)
    return replace(parts, has_leftover_journal=True)


def check_parts_of_shard(facts: RunFacts, shard: Shard, shard_entry: ShardEntry) -> ShardCheck:
    """Check the parts of a published shard: checksums, pages, columns, order and completeness."""
    paths = facts.run_dir.data_part(shard), facts.run_dir.failed_part(shard)
    entries = shard_entry.data, shard_entry.failed
    findings: list[Finding] = []
    places: list[Places | None] = []
    for path, entry in zip(paths, entries, strict=True):
        try:
            places.append(_check_part(facts, path, entry))
        except IntegrityError as exc:
            found = explain_error(FindingKind.PART, path, facts.run_dir.root, exc, shard.number)
            findings.append(_locate(found, path))
    if not findings:
        findings = _check_samples(facts, shard, places)
    return ShardCheck(
        shard=shard,
        is_published=True,
        samples=sum(entry.rows for entry in entries if entry),
        bytes=sum(entry.bytes for entry in entries if entry),
        findings=tuple(findings),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _JournalCheck:
    exists: bool
    epoch: int | None = None
    findings: tuple[Finding, ...] = ()


def _check_journal(facts: RunFacts, shard: Shard) -> _JournalCheck:
    path = facts.run_dir.journal(shard)
    if not path.exists():
        return _JournalCheck(exists=False)
    try:
        return _JournalCheck(exists=True, epoch=read_journal(path, shard, facts.writer).epoch)
    except JournalCorrupt:
        findings = tuple(
            Finding(
                kind=FindingKind.JOURNAL,
                file=facts.name(path),
                offset=damage.offset,
                what=f"{damage.reason} ({damage.length} bytes)",
                shard=shard.number,
            )
            for damage in find_damage(path, shard, facts.writer)
        )
        return _JournalCheck(exists=True, epoch=find_last_epoch(path), findings=findings)


def _find_foreign_parts(facts: RunFacts, shard: Shard) -> list[Finding]:
    paths = facts.run_dir.data_part(shard), facts.run_dir.failed_part(shard)
    what = "is not of this run: it was never published"
    return [
        Finding(kind=FindingKind.PART, file=facts.name(path), what=what, shard=shard.number)
        for path in paths
        if path.exists()
    ]


def _check_part(facts: RunFacts, path: Path, entry: PartEntry | None) -> Places | None:
    try:
        check_part(path, entry)
    except IntegrityError as exc:
        if entry is not None and holds_rows(path, entry.rows_digest):
            what = f"{exc.reason}; its rows still match the published digest"
            raise IntegrityError(f"{path} {what}", reason=what) from exc
        raise
    if entry is None:
        return None
    damage = find_page_damage(path)
    if damage is not None:
        raise IntegrityError(f"{path}: {damage.reason}", reason=damage.reason, offset=damage.offset)
    if path.parent == facts.run_dir.data:
        places = place_data_rows(path, facts.grid, facts.kept, facts.metadata)
    else:
        places = place_failed_rows(path, facts.grid, facts.metadata)
    if facts.decodes_rows and not holds_rows(path, entry.rows_digest):
        reason = "holds rows that differ from the published digest"
        raise IntegrityError(f"{path} {reason}", reason=reason)
    if len(places.row) != entry.rows:
        reason = f"has {len(places.row)} rows, but was published with {entry.rows}"
        raise IntegrityError(f"{path} {reason}", reason=reason)
    return places


def _locate(found: Finding, path: Path) -> Finding:
    """Return the finding with the offset of the damage, if a page or the footer shows it."""
    damage = find_page_damage(path) if found.offset is None and path.exists() else None
    if damage is None:
        return found
    return replace(found, offset=damage.offset, what=f"{found.what} ({damage.reason})")


def _check_samples(facts: RunFacts, shard: Shard, places: list[Places | None]) -> list[Finding]:
    """Return missing or misplaced samples of a shard whose parts are intact."""
    data, failed = places
    where = data or failed
    if where is None:
        return []
    try:
        made = number_made(shard, facts.grid, data) if data else np.empty(0, dtype=np.int64)
        if failed is not None:
            where = failed
            number_failed(shard, facts.grid, failed, made)
        elif len(missing := list_missing(shard, made)):
            reason = f"{describe_sample(facts.grid, int(missing[0]))} is missing, of {len(missing)} in all"
            raise IntegrityError(f"{where.path}: {reason}", reason=reason)
    except IntegrityError as exc:
        return [explain_error(FindingKind.PART, where.path, facts.run_dir.root, exc, shard.number)]
    return []
