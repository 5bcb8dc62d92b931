"""select_samples(): the run directory of a selection.

It has the plan of the run that it selects from, and the same shards, of which each keeps a part of its rows.
Deciding is a pure function of that run and of `select`: a selection that was interrupted is decided anew, and
publishes the shards that it lacks.
"""

import logging
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from synthia_batch.core.digest import digest_json
from synthia_batch.core.events import EventBus
from synthia_batch.core.types import Shard
from synthia_batch.errors import IntegrityError, SynthiaBatchError, UsageError
from synthia_batch.job.identity import digest_text, fingerprint
from synthia_batch.job.select import Select
from synthia_batch.results.read.run import open_complete_run
from synthia_batch.results.report.card import CardFacts, write_card
from synthia_batch.results.report.page import try_report
from synthia_batch.results.select.decide import PLACE, Decisions, Selector, Verdict
from synthia_batch.results.select.names import name_samples
from synthia_batch.results.verify.facts import RunFacts, read_facts
from synthia_batch.runner.directory.plan import refuse_identity
from synthia_batch.scheduler.events import AttemptEnded, AttemptStarted, CommandTyped, ShardPublished
from synthia_batch.storage.atomic import make_directory, sync_directory
from synthia_batch.storage.events import EventLog
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.ledger import PartLedger, ShardEntry, read_ledger
from synthia_batch.storage.lock import RunLock
from synthia_batch.storage.manifest import Manifest, list_parts, read_manifest, write_manifest
from synthia_batch.storage.parts.selection import SelectedRun, encode_selection, iterate_samples
from synthia_batch.storage.plan_file import write_plan_once
from synthia_batch.storage.publish import publish_shard
from synthia_batch.storage.recovery import check_complete, check_part, remove_leftovers

_log = logging.getLogger(__name__)


class NothingSelected(SynthiaBatchError):
    """No sample is kept: there is no such dataset."""

    exit_code = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectResult:
    """A complete selection: of so many `samples` of the run so many are `kept`; `dropped` counts by step."""

    directory: Path
    samples: int
    kept: int
    dropped: Mapping[str, int]


def select_samples(source: Path, select: Select, output: Path | None = None) -> SelectResult:
    """Write the samples of the complete run in `source` that `select` keeps, as a run in `output`.

    The default is outputs/NAME-FINGERPRINT. The same selection again completes one that was interrupted.

    Raises:
        UsageError: The run is not complete, or an expression is wrong; nothing was written.
        NothingSelected: No sample would be kept; nothing was written.
        IdentityMismatch: `output` has another selection.
        IntegrityError: A file of the run, or of the selection, was altered.
    """
    if not select.identify():
        raise UsageError("nothing is selected: set where, best, dedup, limit or sample")
    open_complete_run(source)
    facts = read_facts(source)
    if (manifest := read_manifest(facts.run_dir.manifest)) is None:
        raise UsageError(f"{source} is not complete")
    check_complete(facts.run_dir, manifest, lambda done, total: None)
    selector = Selector(select, name_samples(facts))
    plan = _make_plan(facts.plan, manifest, select)
    run_dir = RunDir(output or Path("outputs") / f"{plan['name']}-{plan['fingerprint'][:8]}")
    refuse_identity(plan["identity"], run_dir)
    decisions = selector.decide(_iterate_finished(facts, selector.columns))
    if not decisions.kept:
        raise NothingSelected(
            f"{source}: none of its {len(decisions.verdicts)} samples is kept: {describe_counts(decisions)}"
        )
    _write_run(run_dir, plan, facts, decisions, manifest)
    try_report(run_dir.root)
    return SelectResult(
        directory=run_dir.root,
        samples=manifest.samples,
        kept=decisions.kept,
        dropped={name: count for name, count in decisions.count().items() if name != "kept"},
    )


def describe_counts(decisions: Decisions) -> str:
    """Return how many samples each step has dropped."""
    names = {verdict.name.lower(): verdict.name.lower().replace("_", " ") for verdict in Verdict}
    found = [(names[name], count) for name, count in decisions.count().items() if name != "kept"]
    first = next(iter(decisions.faults.values()), None)
    return ", ".join(f"{name} {count}" for name, count in found) + (f"; first: {first}" if first else "")


def _make_plan(plan: Mapping[str, Any], manifest: Manifest, select: Select) -> dict[str, Any]:
    """Return the plan of a selection: that of its run, with the run's rows and the steps in the identity."""
    rows = digest_json([[part.path, part.rows_digest] for part in manifest.parts])[:32]
    identity = {**plan["identity"], "select": {"rows": rows, **select.identify()}}
    return {**plan, "fingerprint": fingerprint(identity), "identity": identity}


def _iterate_finished(facts: RunFacts, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for shard in facts.shards:
        path = facts.run_dir.data_part(shard)
        if path.exists():
            yield from iterate_samples(path, columns)


def _write_run(
    run_dir: RunDir, plan: Mapping[str, Any], facts: RunFacts, decisions: Decisions, before: Manifest
) -> None:
    """Publish every shard that is missing, then the card and the manifest."""
    make_directory(run_dir.hidden)
    with RunLock(run_dir, _now()) as owner:
        run_dir.create()
        digest = write_plan_once(run_dir.plan, plan)
        writer = replace(facts.writer, plan_digest=digest, epoch=owner.epoch)
        latest = read_ledger(run_dir.ledger, digest).latest
        is_done = [_is_published(run_dir, shard, latest.get(shard.number)) for shard in facts.shards]
        remove_leftovers(run_dir, ())
        events = EventBus()
        with (
            closing(EventLog.open(run_dir.events, _now)) as log,
            closing(PartLedger.open(run_dir.ledger, writer)) as ledger,
        ):
            events.subscribe(log.write)
            events.publish(AttemptStarted(epoch=owner.epoch, pid=owner.pid, host=owner.host))
            command = _spell_command(facts.run_dir.root, decisions.select)
            events.publish(CommandTyped(command=command, directory=os.getcwd()))
            made = _publish(run_dir, plan, facts, decisions, is_done, ledger, events)
            events.publish(AttemptEnded(made=made, drained=None, exit_code=0))
            parts = list_parts(facts.shards, ledger.latest)
        manifest = replace(
            before,
            plan_digest=digest,
            fingerprint=plan["fingerprint"],
            finished=decisions.kept,
            failed=before.samples - decisions.kept,
            parts=parts,
        )
        if read_manifest(facts.run_dir.manifest) != before:
            raise IntegrityError(
                f"{facts.run_dir.root} was changed while samples of it were selected; run the command again"
            )
        write_card(run_dir, _make_card(plan, facts, decisions.select), manifest)
        sync_directory(run_dir.journals)
        write_manifest(run_dir.manifest, manifest)


def _is_published(run_dir: RunDir, shard: Shard, entry: ShardEntry | None) -> bool:
    """Return whether the parts of `shard` are there. One that is missing was not yet written, or is again.

    Raises:
        IntegrityError: One was altered, or is of something else.
    """
    parts = (
        (run_dir.failed_part(shard), None if entry is None else entry.failed),
        (run_dir.data_part(shard), None if entry is None else entry.data),
    )
    there = [(path, expected) for path, expected in parts if path.exists()]
    for path, expected in there:
        check_part(path, expected)
    return entry is not None and len(there) == len(entry.parts)


def _publish(
    run_dir: RunDir,
    plan: Mapping[str, Any],
    facts: RunFacts,
    decisions: Decisions,
    is_done: list[bool],
    ledger: PartLedger,
    events: EventBus,
) -> int:
    """Publish the shards that are not done; return how many samples they keep."""
    names = _name_originals(facts, decisions)
    metadata = {
        "synthia_batch.fingerprint": plan["fingerprint"],
        **{f"synthia_batch.system.{name}": digest for name, digest in plan["identity"]["system"]},
    }
    source = SelectedRun(
        run_dir=facts.run_dir,
        grid=facts.grid,
        kept=facts.kept,
        fingerprint=facts.fingerprint,
        source_file=plan["source_file"] if "source_files" not in plan else facts.run_dir.root.name,
        metadata=metadata,
    )
    first, made = 0, 0
    entries = read_ledger(facts.run_dir.ledger, facts.writer.plan_digest).latest
    for shard, done in zip(facts.shards, is_done, strict=True):
        data = entries[shard.number].data
        rows = data.rows if data is not None else 0
        is_kept = decisions.verdicts[first : first + rows] == Verdict.KEPT
        if not done:
            begin = first

            def explain(number: int, begin: int = begin) -> tuple[str, str]:
                return decisions.explain(begin + number, names.__getitem__)

            encoded = encode_selection(source, shard, is_kept, explain)
            publish_shard(run_dir, encoded, None, ledger)
            kept = int(np.count_nonzero(is_kept))
            made += kept
            events.publish(
                ShardPublished(
                    shard=shard.number, finished=kept, failed=shard.samples - kept, truncated=0, failures={}
                )
            )
        first += rows
    return made


def _name_originals(facts: RunFacts, decisions: Decisions) -> dict[int, str]:
    """Return the names of the samples of which others are duplicates, by number."""
    wanted = set(decisions.original[decisions.original >= 0].tolist())
    if not wanted:
        return {}
    samples = enumerate(_iterate_finished(facts, PLACE))
    return {
        number: "/".join(str(values[name]) for name in PLACE)
        for number, values in samples
        if number in wanted
    }


def _make_card(plan: Mapping[str, Any], facts: RunFacts, select: Select) -> CardFacts:
    source = facts.run_dir.root.name
    systems = plan["identity"]["system"]
    return CardFacts(
        name=plan["name"],
        model=plan["identity"]["model"]["name"],
        source=source,
        command=shlex.join(_spell_command(Path(source), select)),
        systems={name: "" if digest == digest_text("") else f"as in {source}" for name, digest in systems},
        identity=plan["identity"],
        licence=None,
    )


def _spell_command(source: Path, select: Select) -> list[str]:
    """Return the words of the command that makes this selection."""
    words = ["synthia-batch", "select", str(source)]
    for name, value in select.identify().items():
        words += [f"--{name}", str(value)]
    return words


def _now() -> datetime:
    return datetime.now().astimezone()
