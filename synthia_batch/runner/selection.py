"""select_samples(): the run directory of a selection.

It has the plan of the run that it selects from, and the same shards, of which each keeps a part of its rows.
Deciding is a pure function of that run and of `select`: a selection that was interrupted is decided anew, and
publishes the shards that it lacks.
"""

import logging
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from synthia_batch.core.errors import IntegrityError, NothingSelected, UsageError
from synthia_batch.core.events import EventBus
from synthia_batch.core.types import KeptColumn, Shard
from synthia_batch.job.identity import digest_text, fingerprint
from synthia_batch.job.loading.command_line import read_command
from synthia_batch.job.select import NO_STEPS, Select
from synthia_batch.results.read.counts import RunCounts, find_limit
from synthia_batch.results.read.run import open_complete_run
from synthia_batch.results.read.stage_runs import digest_parts
from synthia_batch.results.report.card import CardFacts, write_card
from synthia_batch.results.report.page import try_report
from synthia_batch.results.select.decide import Selector
from synthia_batch.results.select.names import PLACE, name_samples
from synthia_batch.results.select.verdicts import Decisions, Verdict, count_not_selected
from synthia_batch.results.verify.facts import RunFacts, read_facts
from synthia_batch.runner.directory.plan import describe_parts, refuse_identity
from synthia_batch.runner.directory.session import read_time
from synthia_batch.scheduler.events import AttemptEnded, AttemptStarted, CommandTyped, ShardPublished
from synthia_batch.storage.atomic import make_directory, sync_directory
from synthia_batch.storage.events import EventLog
from synthia_batch.storage.journal.writer import Journal
from synthia_batch.storage.layout import PART_FOLDERS, RunDir
from synthia_batch.storage.ledger import PartLedger, read_ledger
from synthia_batch.storage.lock import RunLock, WriterEpoch
from synthia_batch.storage.manifest import Manifest, list_parts, read_manifest, write_manifest
from synthia_batch.storage.parts.columns import read_codes, read_numbers
from synthia_batch.storage.parts.selection import Chosen, SelectedRun, encode_selection, iterate_samples
from synthia_batch.storage.plan_file import write_plan_once
from synthia_batch.storage.publish import publish_shard
from synthia_batch.storage.recovery import (
    Published,
    ShardState,
    check_complete,
    check_parts,
    inspect_shard,
    remove_leftovers,
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectResult:
    """A complete selection: of so many `samples` of the run so many are `kept`; `dropped` counts by step."""

    directory: Path
    samples: int
    kept: int
    dropped: Mapping[str, int]

    @property
    def not_selected(self) -> int:
        """How many samples a step has dropped, without those on which an expression failed."""
        return count_not_selected(self.dropped)


def select_samples(
    source: Path,
    select: Select,
    output: Path | None = None,
    *,
    within: Path = Path("outputs"),
    called: str | None = None,
    reports: bool = True,
) -> SelectResult:
    """Write the samples of the complete run in `source` that `select` keeps, as a run in `output`.

    The default is a directory in `within`, whose name begins as it is `called`, or else as the run is. The
    same selection again completes one that was interrupted. It has a report if `reports`.

    Raises:
        UsageError: The run is not complete, or an expression is wrong; nothing was written.
        NothingSelected: No sample would be kept; nothing was written.
        IdentityMismatch: `output` has another selection.
        IntegrityError: A file of the run, or of the selection, was altered.
    """
    if not select.identify():
        raise UsageError(NO_STEPS)
    for flag, place in (("DIR", source), ("-o", output)):
        if place is not None and ":/" in str(place):
            raise UsageError(f"{flag} {place}: select reads and writes directories; copy the run here")
    open_complete_run(source)
    facts = read_facts(source)
    before = read_manifest(facts.run_dir.manifest)
    if before is None:  # A retry has begun in the meantime.
        raise UsageError(f"{source} is not complete any more; select when it is")
    check_complete(facts.run_dir, before, lambda done, total: None)
    selector = Selector(select, name_samples(facts))
    plan = _make_plan(facts.plan, before, {**select.identify(), **selector.facts})
    run_dir = RunDir(output or within / f"{called or plan['name']}-{plan['fingerprint'][:8]}")
    if run_dir.root.absolute().is_relative_to(source.absolute()):
        raise UsageError(f"-o {run_dir.root}: it would be in the run that is selected from; name another")
    refuse_identity(plan["identity"], run_dir)
    decisions = selector.decide(lambda columns: _iterate_finished(facts, columns))
    dropped = {name: count for name, count in decisions.count().items() if name != "kept"}
    if not decisions.kept:
        steps = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in dropped.items())
        found = [f"first: {fault}" for fault in list(decisions.faults.values())[:1]]
        found += selector.describe_values(lambda columns: _iterate_finished(facts, columns))
        raise NothingSelected(
            f"{source}: none of its {len(decisions.verdicts)} samples is kept: {'; '.join([steps, *found])}\n"
            "  change what is selected and run the command again: runs that are complete stay as they are",
            samples=before.samples,
            dropped=dropped,
        )
    plan = {**plan, "scan": _add_kept(plan["scan"], decisions.added)}
    named = _name_source(facts, source, None if called is None else within)
    _Selection(
        run_dir=run_dir, plan=plan, facts=facts, decisions=decisions, before=before, named=named
    ).write()
    if reports:
        try_report(run_dir.root)
    return SelectResult(directory=run_dir.root, samples=before.samples, kept=decisions.kept, dropped=dropped)


def _name_source(facts: RunFacts, source: Path, stages: Path | None) -> Path:
    """Return what the card's command calls the run in `source`: of a stage, as seen from the pipeline.

    Of another not where it is: the same selection has the same card.
    """
    if stages is not None:
        return Path(stages.name) / source.name
    return Path("outputs") / f"{facts.plan['name']}-{facts.fingerprint[:8]}"


def _make_plan(plan: Mapping[str, Any], manifest: Manifest, steps: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plan of a selection: that of its run, with the run's rows and the steps in the identity."""
    identity = {**plan["identity"], "select": {"rows": digest_parts(manifest), **steps}}
    return {**plan, "fingerprint": fingerprint(identity), "identity": identity}


def _add_kept(scan: Mapping[str, Any], added: Sequence[KeptColumn]) -> dict[str, Any]:
    """Return what a plan says of the input, with the columns that a selection has `added`."""
    described = [{"name": column.name, "type": column.type} for column in added]
    return {**scan, "kept": [*scan["kept"], *described]}


def _iterate_finished(facts: RunFacts, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for shard in facts.shards:
        path = facts.run_dir.data_part(shard)
        if path.exists():
            yield from iterate_samples(path, columns)


@dataclass(slots=True, kw_only=True)
class _Selection:
    """The selection in `run_dir`, by `decisions` on the run of `facts`, whose manifest was `before`.

    The card's command names that run's directory as `named`.
    """

    run_dir: RunDir
    plan: Mapping[str, Any]
    facts: RunFacts
    decisions: Decisions
    before: Manifest
    named: Path

    def write(self) -> None:
        """Publish every shard that is missing, then the card and the manifest."""
        run_dir, facts, before = self.run_dir, self.facts, self.before
        make_directory(run_dir.hidden)
        with RunLock(run_dir, read_time()) as owner:
            run_dir.create()
            digest = write_plan_once(run_dir.plan, self.plan)
            writer = replace(facts.writer, plan_digest=digest, epoch=owner.epoch)
            latest = read_ledger(run_dir.ledger, digest).latest
            states = [inspect_shard(run_dir, shard, latest, writer) for shard in facts.shards]
            check_parts(run_dir, states, lambda done, total: None)
            remove_leftovers(run_dir, states)
            events = EventBus()
            with (
                closing(EventLog.open(run_dir.events, read_time)) as log,
                closing(PartLedger.open(run_dir.ledger, writer)) as ledger,
            ):
                events.subscribe(log.write)
                events.publish(AttemptStarted(epoch=owner.epoch, pid=owner.pid, host=owner.host))
                command = read_command() or _spell_command(facts.run_dir.root, self.decisions.select)
                events.publish(CommandTyped(command=command, directory=os.getcwd()))
                made = self._publish(states, ledger, writer, events)
                events.publish(AttemptEnded(made=made, drained=None, exit_code=0))
                parts = list_parts(facts.shards, ledger.latest)
            manifest = replace(
                before,
                plan_digest=digest,
                fingerprint=self.plan["fingerprint"],
                finished=self.decisions.kept,
                failed=before.samples - self.decisions.kept,
                parts=parts,
            )
            finished = sum(part.rows for part in parts if part.path.startswith(PART_FOLDERS[0]))
            if read_manifest(facts.run_dir.manifest) != before or finished != self.decisions.kept:
                raise IntegrityError(
                    f"{facts.run_dir.root} was changed while samples of it were selected; "
                    f"remove {run_dir.root} and run the command again"
                )
            write_card(run_dir, _make_card(self.plan, facts, self.decisions.select, self.named), manifest)
            sync_directory(run_dir.journals)
            write_manifest(run_dir.manifest, manifest)

    def _publish(
        self, states: Sequence[ShardState], ledger: PartLedger, writer: WriterEpoch, events: EventBus
    ) -> int:
        """Publish the shards that are not; return how many samples they keep."""
        names = _name_originals(self.facts, self.decisions)
        source, first, made = self._describe_source(), 0, 0
        entries = read_ledger(self.facts.run_dir.ledger, self.facts.writer.plan_digest).latest
        for state in states:
            shard, data = state.shard, entries[state.shard.number].data
            begin, first = first, first + (data.rows if data is not None else 0)
            if isinstance(state, Published):
                continue
            encoded = encode_selection(source, shard, chosen := self._choose(begin, first, names))
            # Empty: it says that the shard is being published, whatever interrupts that.
            journal = Journal.open(self.run_dir.journal(shard), shard, writer)
            publish_shard(self.run_dir, encoded, journal, ledger)
            made += int(np.count_nonzero(chosen.is_kept))
            events.publish(self._count(shard))
        return made

    def _choose(self, begin: int, stop: int, names: Mapping[int, str]) -> Chosen:
        """Return what becomes of the samples `begin` to `stop` (excluded), the rows of a part."""
        decisions = self.decisions
        return Chosen(
            is_kept=decisions.verdicts[begin:stop] == Verdict.KEPT,
            explain=lambda number: decisions.explain(begin + number, names.__getitem__),
            read=lambda number: decisions.read(begin + number),
        )

    def _describe_source(self) -> SelectedRun:
        plan, facts = self.plan, self.facts
        return SelectedRun(
            run_dir=facts.run_dir,
            grid=facts.grid,
            kept=facts.kept,
            fingerprint=facts.fingerprint,
            # Of several files, data/ does not say which has the row.
            source_file=plan["name"] if "source_files" in plan else plan["source_file"],
            metadata=describe_parts(plan["fingerprint"], plan["identity"]),
            added=self.decisions.added,
        )

    def _count(self, shard: Shard) -> ShardPublished:
        """Return the event of a shard that was published, with the numbers in its parts."""
        counts = RunCounts(max_tokens=find_limit(self.plan["identity"]))
        data, failed = self.run_dir.data_part(shard), self.run_dir.failed_part(shard)
        if data.exists():
            counts.add_finished(read_numbers(data))
        if failed.exists():
            counts.add_failed(read_codes(failed))
        total = counts.total
        return ShardPublished(
            shard=shard.number,
            finished=total.finished,
            failed=counts.codes.total(),
            truncated=total.truncated,
            failures=dict(counts.codes_by_count),
        )


def _name_originals(facts: RunFacts, decisions: Decisions) -> dict[int, str]:
    """Return the names of the samples of which others are duplicates, or into which they are combined."""
    wanted = set(decisions.original[decisions.original >= 0].tolist())
    if not wanted:
        return {}
    samples = enumerate(_iterate_finished(facts, PLACE))
    return {
        number: "/".join(str(values[name]) for name in PLACE)
        for number, values in samples
        if number in wanted
    }


def _make_card(plan: Mapping[str, Any], facts: RunFacts, select: Select, named: Path) -> CardFacts:
    source = f"{facts.plan['name']}-{facts.fingerprint[:8]}"
    systems = plan["identity"]["system"]
    return CardFacts(
        name=plan["name"],
        model=plan["identity"]["model"]["name"],
        source=source,
        command=shlex.join(_spell_command(named, select)),
        systems={name: "" if digest == digest_text("") else f"as in {source}" for name, digest in systems},
        identity=plan["identity"],
        licence=None,
    )


def _spell_command(source: Path, select: Select) -> list[str]:
    """Return the words of a command that makes this selection."""
    return ["synthia-batch", "select", str(source), *select.spell_flags()]
