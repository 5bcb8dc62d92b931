"""Checks files beside parts and journals: records, manifest, leftover and unknown files."""

from collections.abc import Callable, Iterator
from pathlib import Path

from synthia_batch.core.checksummed_json import read_checksummed
from synthia_batch.core.errors import IntegrityError
from synthia_batch.inputs.records.row_ids import DuplicateIndex
from synthia_batch.results.verify.facts import RunFacts
from synthia_batch.results.verify.findings import Finding, FindingKind, explain_error
from synthia_batch.results.verify.shard import ShardCheck
from synthia_batch.storage.atomic import temporary_path
from synthia_batch.storage.journal.frames import scan_frames
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.ledger import ShardEntry, read_ledger
from synthia_batch.storage.lock import read_last_owner
from synthia_batch.storage.manifest import Manifest, list_parts


def check_kept_files(facts: RunFacts) -> Iterator[Finding]:
    """Yield damage of the records beside the plan. A missing record that the run rewrites is no finding."""
    run_dir = facts.run_dir
    checks: tuple[tuple[FindingKind, Path, Callable[[], object]], ...] = (
        (FindingKind.OWNER, run_dir.owner, lambda: read_last_owner(run_dir)),
        (FindingKind.RECORD, run_dir.duplicates, lambda: _check_duplicates(run_dir)),
        (FindingKind.RECORD, run_dir.job, lambda: read_checksummed(run_dir.job)),
        (FindingKind.CANARY, run_dir.canary, lambda: read_checksummed(run_dir.canary)),
    )
    for kind, path, check in checks:
        try:
            check()
        except IntegrityError as exc:
            is_replaceable = kind is FindingKind.CANARY and not _has_samples(facts)
            yield explain_error(FindingKind.RECORD if is_replaceable else kind, path, run_dir.root, exc)


def _check_duplicates(run_dir: RunDir) -> None:
    if run_dir.duplicates.exists():
        DuplicateIndex.load(run_dir.duplicates)


def _has_samples(facts: RunFacts) -> bool:
    """Whether any sample may have ended; a damaged ledger counts as yes."""
    try:
        if read_ledger(facts.run_dir.ledger, facts.writer.plan_digest).latest:
            return True
    except IntegrityError:
        return True
    for journal in facts.run_dir.journals.glob("*.wal"):
        with journal.open("rb") as file:
            if any(
                frame.value is None or frame.value.keys() & {"finished", "failed"}
                for frame in scan_frames(file)
            ):
                return True
    return False


def check_manifest(
    facts: RunFacts, manifest: Manifest, checks: tuple[ShardCheck, ...], latest: dict[int, ShardEntry]
) -> Iterator[Finding]:
    """Yield contradictions of the manifest with the plan, the ledger, or itself."""
    rows = facts.shards[-1].stop_row
    samples = facts.shards[-1].stop
    claims = {
        "plan_digest": (manifest.plan_digest, facts.writer.plan_digest),
        "fingerprint": (manifest.fingerprint, facts.fingerprint),
        "rows": (manifest.rows, rows),
        "samples": (manifest.samples, samples),
        "finished + failed": (manifest.finished + manifest.failed, samples),
        "parts' rows": (sum(part.rows for part in manifest.parts), samples),
    }
    faults = [f"{name} is {claim}, must be {true}" for name, (claim, true) in claims.items() if claim != true]
    if set(manifest.parts) != set(list_parts(facts.shards, latest)):
        faults.append("its parts are not those of the ledger")
    unpublished = [check.shard.number for check in checks if not check.is_published]
    if unpublished:
        faults.append(f"it lists a complete run, but shard {unpublished[0]} is not published")
    file = facts.name(facts.run_dir.manifest)
    yield from (Finding(kind=FindingKind.MANIFEST, file=file, what=fault) for fault in faults)
    if not facts.run_dir.readme.exists():
        card = facts.name(facts.run_dir.readme)
        yield Finding(kind=FindingKind.MANIFEST, file=card, what="the dataset card is missing")


def find_leftovers(
    facts: RunFacts, temporary_files: tuple[Path, ...], checks: tuple[ShardCheck, ...]
) -> Iterator[Finding]:
    """Yield leftover files of a complete run.

    In an incomplete run they are no finding: every crash leaves some, and the next run removes them. The
    same applies to the hidden directory of a complete run, where a retry killed at its start leaves a file.
    """
    for path in temporary_files:
        # The report is not part of the dataset: an interrupted write does no harm.
        if facts.run_dir.hidden in path.parents or path == temporary_path(facts.run_dir.report):
            continue
        yield Finding(kind=FindingKind.LEFTOVER, file=facts.name(path), what="an unfinished file")
    for check in checks:
        if check.has_leftover_journal:
            file = facts.name(facts.run_dir.journal(check.shard))
            what = "a journal of published samples"
            yield Finding(kind=FindingKind.LEFTOVER, file=file, what=what, shard=check.shard.number)


def find_unknown_files(facts: RunFacts, temporary_files: tuple[Path, ...]) -> Iterator[Finding]:
    """Yield files in the dataset's directories that no run wrote."""
    run_dir = facts.run_dir
    known = {*temporary_files}
    for shard in facts.shards:
        known |= {run_dir.data_part(shard), run_dir.failed_part(shard), run_dir.journal(shard)}
    for directory in (run_dir.data, run_dir.failed, run_dir.journals):
        for path in sorted(directory.iterdir()) if directory.is_dir() else ():
            if path not in known:
                yield Finding(
                    kind=FindingKind.UNKNOWN, file=facts.name(path), what="is not a file of this run"
                )
