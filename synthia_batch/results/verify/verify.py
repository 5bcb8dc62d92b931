"""verify_run(): checks that a run directory holds exactly what its run wrote.

Each part is read once for its SHA-256 and then, from the page cache, for the checksum of every page and
the positions of its rows. Memory holds a page per thread and the row positions of a shard.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from synthia_batch.core.errors import IntegrityError
from synthia_batch.core.types import Shard
from synthia_batch.results.verify.facts import RunFacts, read_facts, refuse_other_format
from synthia_batch.results.verify.findings import Finding, FindingKind, explain_error
from synthia_batch.results.verify.run_files import (
    check_kept_files,
    check_manifest,
    find_leftovers,
    find_unknown_files,
)
from synthia_batch.results.verify.shard import ShardCheck, check_parts_of_shard, check_shard
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.ledger import ShardEntry, read_ledger
from synthia_batch.storage.lock import Owner, find_running
from synthia_batch.storage.manifest import Manifest, read_manifest
from synthia_batch.storage.recovery import HASH_THREADS, list_temporary_files

OnProgress = Callable[[int, int], None]
"""Receives the bytes of parts read so far, and the total."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Result of a verification. `state` is complete, unfinished, running (by `owner`) or unknown.

    `samples` and `bytes` are those of the published parts. `leftovers` counts files left by a crash, which
    the next run removes; in a complete run some of them are findings.
    """

    directory: str
    state: str
    findings: tuple[Finding, ...]
    owner: Owner | None = None
    shards: int = 0
    shards_published: int = 0
    samples: int = 0
    bytes: int = 0
    leftovers: int = 0
    seconds: float = 0.0

    @property
    def megabytes_per_second(self) -> float:
        return self.bytes / 1e6 / self.seconds if self.seconds > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        return {
            "directory": self.directory,
            "state": self.state,
            "shards": self.shards,
            "shards_published": self.shards_published,
            "samples": self.samples,
            "bytes": self.bytes,
            "seconds": round(self.seconds, 3),
            "megabytes_per_second": round(self.megabytes_per_second, 1),
            "leftovers": self.leftovers,
            "findings": [finding.to_dict() for finding in self.findings],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCheck:
    """Result of the check of a run directory. `manifest` is None if there is no sound one."""

    manifest: Manifest | None
    checks: tuple[ShardCheck, ...]
    temporary_files: tuple[Path, ...]
    findings: tuple[Finding, ...]

    @property
    def leftover_journals(self) -> list[Shard]:
        """Published shards that still have a journal."""
        return [check.shard for check in self.checks if check.has_leftover_journal]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ledger:
    """The latest entries; from the manifest if the ledger is damaged, as `findings` then reports."""

    latest: dict[int, ShardEntry]
    findings: tuple[Finding, ...] = ()


def verify_run(directory: Path, on_progress: OnProgress, *, decodes_rows: bool = False) -> Verification:
    """Check the run in `directory`, complete or not. Only reads, and takes no lock.

    While the run is active, only published shards are checked. `decodes_rows` compares rows with their
    digest, at a fraction of the speed: beyond a file's SHA-256, this detects only encoder errors.
    """
    started = time.monotonic()
    try:
        facts = replace(read_facts(directory), decodes_rows=decodes_rows)
    except IntegrityError as exc:
        # Without its plan, nothing else of a run can be checked.
        finding = explain_error(FindingKind.PLAN, RunDir(directory).plan, directory, exc)
        return Verification(directory=str(directory), state="unknown", findings=(finding,))
    refuse_other_format(facts)
    is_complete = facts.run_dir.manifest.exists()
    owner = None if is_complete else _find_running(facts.run_dir)
    found = check_running(facts, on_progress) if owner else check_run(facts, on_progress)
    return Verification(
        directory=str(directory),
        state="complete" if is_complete else "running" if owner else "unfinished",
        owner=owner,
        shards=len(facts.shards),
        shards_published=sum(check.is_published for check in found.checks),
        samples=sum(check.samples for check in found.checks),
        bytes=sum(check.bytes for check in found.checks),
        leftovers=len(found.temporary_files) + len(found.leftover_journals),
        findings=found.findings,
        seconds=time.monotonic() - started,
    )


def check_run(facts: RunFacts, on_progress: OnProgress) -> RunCheck:
    """Check everything in an inactive run directory. Only reads."""
    findings: list[Finding] = [*check_kept_files(facts)]
    manifest = None
    try:
        manifest = read_manifest(facts.run_dir.manifest)
    except IntegrityError as exc:
        findings.append(explain_error(FindingKind.MANIFEST, facts.run_dir.manifest, facts.run_dir.root, exc))
    ledger = _read_ledger(facts, manifest)
    checks = _check_all(
        [(shard, ledger.latest.get(shard.number)) for shard in facts.shards],
        lambda shard, shard_entry: check_shard(facts, shard, shard_entry),
        on_progress,
    )
    for check in checks:
        # Without a sound ledger, no part is known to be foreign.
        is_certain = check.is_published or not ledger.findings
        findings += [found for found in check.findings if is_certain or found.kind is FindingKind.JOURNAL]
    if manifest is not None:
        findings += check_manifest(facts, manifest, checks, ledger.latest)
    temporary_files = tuple(list_temporary_files(facts.run_dir))
    if facts.run_dir.manifest.exists():
        findings += find_leftovers(facts, temporary_files, checks)
    findings += [*ledger.findings, *find_unknown_files(facts, temporary_files)]
    return RunCheck(
        manifest=manifest,
        checks=checks,
        temporary_files=temporary_files,
        findings=tuple(sorted(findings, key=lambda finding: (finding.file, finding.offset or 0))),
    )


def check_running(facts: RunFacts, on_progress: OnProgress) -> RunCheck:
    """Check what an active run has published so far. Only reads."""
    before = _read_ledger(facts, None)
    published = [
        (shard, before.latest[shard.number])
        for shard in facts.shards
        if shard.number in before.latest and not facts.run_dir.journal(shard).exists()
    ]
    checks = _check_all(
        published,
        lambda shard, _: check_parts_of_shard(facts, shard, before.latest[shard.number]),
        on_progress,
    )
    after = _read_ledger(facts, None)
    # A retry may have republished a shard in the meantime.
    unchanged = [
        check for check in checks if before.latest[check.shard.number] == after.latest.get(check.shard.number)
    ]
    findings = [found for check in unchanged for found in check.findings]
    return RunCheck(
        manifest=None, checks=tuple(unchanged), temporary_files=(), findings=(*before.findings, *findings)
    )


def _check_all(
    shards: Sequence[tuple[Shard, ShardEntry | None]],
    check: Callable[[Shard, ShardEntry | None], ShardCheck],
    on_progress: OnProgress,
) -> tuple[ShardCheck, ...]:
    sizes = [sum(part.bytes for part in entry.parts) if entry else 0 for _, entry in shards]
    total, done = sum(sizes), 0
    on_progress(0, total)
    with ThreadPoolExecutor(HASH_THREADS) as threads:
        futures = {threads.submit(check, *pair): size for pair, size in zip(shards, sizes, strict=True)}
        try:
            for future in as_completed(futures):
                done += futures[future]
                on_progress(done, total)
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
        return tuple(future.result() for future in futures)


def _read_ledger(facts: RunFacts, manifest: Manifest | None) -> _Ledger:
    path = facts.run_dir.ledger
    try:
        return _Ledger(latest=read_ledger(path, facts.writer.plan_digest).latest)
    except IntegrityError as exc:
        finding = explain_error(FindingKind.LEDGER, path, facts.run_dir.root, exc)
        known = manifest.list_entries(facts.shards, facts.writer.epoch) if manifest else {}
        return _Ledger(latest=known, findings=(finding,))


def _find_running(run_dir: RunDir) -> Owner | None:
    try:
        return find_running(run_dir)
    except IntegrityError:
        return None  # a finding of its own
