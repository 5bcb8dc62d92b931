"""Samples taken over from an earlier run of the same stage, to whose rows a retry before it has added.

The answer to a sample is decided by the job, by its seed, which is of its row's id and its place in the row,
and by its conversation. Where all of these are equal, the answer is, too: in strict determinism to the byte,
in fast as one that the run could have made. What is taken over is journaled like an answer from an engine, so
that a kill in between changes nothing.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthia_batch.core.checksummed_json import encode_checksummed, read_checksummed
from synthia_batch.core.errors import IntegrityError, SynthiaBatchError
from synthia_batch.core.formatting import format_count
from synthia_batch.core.types import Finished, Sample, Shard
from synthia_batch.job.resolved import ResolvedJob
from synthia_batch.results.verify.facts import RunFacts, read_facts
from synthia_batch.runner.directory.session import RunSession
from synthia_batch.storage.atomic import publish_bytes
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.manifest import read_manifest
from synthia_batch.storage.parts.columns import read_part
from synthia_batch.storage.parts.reader import read_made
from synthia_batch.storage.plan_file import read_plan
from synthia_batch.storage.recovery import check_part

_log = logging.getLogger(__name__)

_OF_ROWS = ("sampling", "tools", "message_fields")
"""Columns by which a row decides more about its answers than its messages show."""


def find_earlier(stage: str, job: ResolvedJob) -> Path | None:
    """Return the latest complete run of `stage` beside that of `job` that differs in its rows alone.

    None if there is none, or if the answers depend on more of a row than its messages.
    """
    columns = job.identity["input"]["columns"]
    if any(columns.get(name) is not None for name in _OF_ROWS) or {"accept", "lora"} & job.identity.keys():
        return None
    found = [path for path in job.output.parent.glob(f"{stage}-*") if path.name != job.output.name]
    alike = [path for path in found if _is_alike(RunDir(path), job.identity)]
    return max(alike, key=lambda path: RunDir(path).manifest.stat().st_mtime_ns, default=None)


def take_over(session: RunSession, earlier: Path) -> None:
    """Record the finished samples of the complete run in `earlier` that the open run would make alike.

    Holds the samples of one shard of each run in memory, and 16 bytes for each sample of `earlier`. Nothing
    is taken over from a run that is damaged, or whose engines answered the canary prompts otherwise than
    those of the open run.
    """
    store, taken = session.store, 0
    if next(store.unfinished, None) is None:
        return
    try:
        known = _open_earlier(session, earlier)
        for state in list(store.unfinished):
            if session.drain.reason is not None:
                break
            ended = store.list_ended(state.shard)
            samples = [
                sample
                for sample in session.assembler.list_samples(state.shard)
                if sample.ordinal not in ended and sample.row.fault is None
            ]
            records = [found for sample in samples if (found := known.find(sample)) is not None]
            if records:
                known.bind_engines(session.run_dir)
            store.record(records)
            store.close_journals()
            taken += len(records)
    except _NotUsable as exc:
        _log.info(f"nothing {'more ' if taken else ''}is taken over from {earlier}: {exc}")
    session.ended_before = store.finished + store.failed
    if taken:
        _log.info(f"{format_count(taken, 'sample')} taken over from {earlier}: their rows are unchanged")


class _NotUsable(Exception):
    """The earlier run cannot be read, or is of other engines: the samples are generated."""


@contextmanager
def _reading() -> Iterator[None]:
    """Turn each error of the earlier run into _NotUsable: errors of the open run must end it."""
    try:
        yield
    except SynthiaBatchError as exc:
        raise _NotUsable(str(exc).splitlines()[0]) from exc


@dataclass(slots=True, kw_only=True)
class _EarlierRun:
    """A complete run, with the seeds of its finished samples, ascending, and the number of the shard of each.

    `canary` is its file of canary answers, None if it has none.
    """

    facts: RunFacts
    seeds: NDArray[np.int64]
    numbers: NDArray[np.int64]
    canary: bytes | None
    _read: int = -1
    _made: dict[int, tuple[Finished, Any]] = field(default_factory=dict)

    def find(self, sample: Sample) -> Finished | None:
        """Return the answer to a sample with the same seed and conversation, None if there is none."""
        at = int(np.searchsorted(self.seeds, sample.seed))
        if at == len(self.seeds) or self.seeds[at] != sample.seed:
            return None
        if self.numbers[at] != self._read:
            with _reading():
                self._made = _read_shard(self.facts, self.facts.shards[int(self.numbers[at])])
            self._read = int(self.numbers[at])
        finished, messages = self._made.get(sample.seed, (None, None))
        if finished is None or not _has_messages(sample, finished, messages):
            return None
        return replace(finished, ordinal=sample.ordinal)

    def bind_engines(self, run_dir: RunDir) -> None:
        """Make the canary answers of this run those of the run in `run_dir`, unless it has some.

        Its engines must be those that made the samples. Call it before the first one is recorded.
        """
        if self.canary is not None and not run_dir.canary.exists():
            publish_bytes(run_dir.canary, self.canary)


def _open_earlier(session: RunSession, earlier: Path) -> _EarlierRun:
    """Return the run in `earlier`, of whose parts every byte has been checked.

    Raises:
        _NotUsable: It is damaged, a retry has begun in the meantime, or its engines were others.
    """
    with _reading():
        facts = read_facts(earlier)
        manifest = read_manifest(facts.run_dir.manifest)
        if manifest is None or manifest.plan_digest != facts.writer.plan_digest:
            raise _NotUsable("it is not complete")
        before = read_checksummed(facts.run_dir.canary)
        now = read_checksummed(session.run_dir.canary)
        if before is None and (now is not None or session.job.engine.determinism == "strict"):
            raise _NotUsable("its engines' answers to the canary prompts are missing")
        if (
            before is not None
            and now is not None
            and any(before[key] != now[key] for key in ("texts", "bits"))
        ):
            raise _NotUsable("its engines answered the canary prompts otherwise")
        for part in manifest.parts:
            check_part(facts.run_dir.root / part.path, part.entry)
        seeds, numbers = _index_seeds(facts)
        canary = None if before is None else encode_checksummed(before)
    return _EarlierRun(facts=facts, seeds=seeds, numbers=numbers, canary=canary)


def _is_alike(run_dir: RunDir, identity: Mapping[str, Any]) -> bool:
    try:
        plan = read_plan(run_dir.plan) if run_dir.manifest.exists() else None
    except IntegrityError:
        return False
    if plan is None:
        return False
    before = plan["identity"]
    return bool({**before, "input": {**before["input"], "digest": identity["input"]["digest"]}} == identity)


def _index_seeds(facts: RunFacts) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the seeds of all finished samples, ascending, and the number of the shard of each."""
    seeds: list[NDArray[np.int64]] = []
    numbers: list[NDArray[np.int64]] = []
    for shard in facts.shards:
        path = facts.run_dir.data_part(shard)
        if path.exists():
            found = np.array(read_part(path, ("seed",))["seed"].to_pylist(), dtype=np.int64)
            seeds.append(found)
            numbers.append(np.full(len(found), shard.number, dtype=np.int64))
    whole = np.concatenate([*seeds, np.array([], dtype=np.int64)])
    order = np.argsort(whole, kind="stable")
    return whole[order], np.concatenate([*numbers, np.array([], dtype=np.int64)])[order]


def _read_shard(facts: RunFacts, shard: Shard) -> dict[int, tuple[Finished, Any]]:
    """Return the finished samples of a shard with their messages, by seed."""
    path = facts.run_dir.data_part(shard)
    written = read_part(path, ("seed", "messages"))
    made = read_made(path, shard, facts.grid).values()
    rows = zip(written["seed"].to_pylist(), made, written["messages"].to_pylist(), strict=True)
    return {seed: (finished, messages) for seed, finished, messages in rows}


def _has_messages(sample: Sample, finished: Finished, messages: Any) -> bool:
    """Return whether the sample's conversation with this answer is the one written, to its end."""
    if len(finished.earlier) != len(sample.row.follow_ups):
        return False
    whole = sample.complete(finished.earlier, finished.response)
    return [(turn.role, turn.content) for turn in whole] == [
        (turn["role"], turn["content"]) for turn in messages
    ]
