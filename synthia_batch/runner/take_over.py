"""Samples taken over from an earlier run of the same stage, to whose rows a retry before it has added.

The answer to a sample is decided by the job, by its seed, which is of its row's id and its place in the row,
and by its conversation. Where all of these are equal, the answer is, too: in strict determinism to the byte,
in fast as one that the run could have made. What is taken over is journaled like an answer from an engine, so
that a kill in between changes nothing.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthia_batch.core.formatting import format_count
from synthia_batch.core.types import Finished, Sample, Shard
from synthia_batch.errors import IntegrityError, SynthiaBatchError
from synthia_batch.job.resolved import ResolvedJob
from synthia_batch.results.verify.facts import RunFacts, read_facts
from synthia_batch.runner.directory.session import RunSession
from synthia_batch.storage.atomic import publish_bytes
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.manifest import read_manifest
from synthia_batch.storage.parts.columns import read_part
from synthia_batch.storage.parts.reader import read_made
from synthia_batch.storage.plan_file import read_plan
from synthia_batch.storage.recovery import check_complete

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

    Holds the samples of one shard of each run in memory, and 16 bytes for each sample of `earlier`. Of a run
    that is damaged, nothing is taken over.
    """
    store = session.store
    if next(store.unfinished, None) is None:
        return
    try:
        facts = read_facts(earlier)
        manifest = read_manifest(facts.run_dir.manifest)
        if manifest is None:  # A retry has begun in the meantime.
            return
        check_complete(facts.run_dir, manifest, lambda done, total: None)
    except SynthiaBatchError as exc:
        _log.info(f"nothing is taken over from {earlier}: {str(exc).splitlines()[0]}")
        return
    if facts.run_dir.canary.exists() and not session.run_dir.canary.exists():
        # The engines must be those that made the samples.
        publish_bytes(session.run_dir.canary, facts.run_dir.canary.read_bytes())
    seeds, numbers = _index_seeds(facts)
    taken, read, known = 0, -1, dict[int, tuple[Finished, Any]]()
    for state in list(store.unfinished):
        ended, records = store.list_ended(state.shard), []
        for sample in session.assembler.list_samples(state.shard):
            at = int(np.searchsorted(seeds, sample.seed))
            is_known = at < len(seeds) and seeds[at] == sample.seed
            if not is_known or sample.ordinal in ended or sample.row.fault is not None:
                continue
            if numbers[at] != read:
                read = int(numbers[at])
                known = _read_shard(facts, facts.shards[read])
            finished, messages = known[sample.seed]
            if _has_messages(sample, finished, messages):
                records.append(replace(finished, ordinal=sample.ordinal))
        taken += len(records)
        store.record(records)
        store.close_journals()
    session.ended_before = store.finished + store.failed
    if taken:
        _log.info(f"{format_count(taken, 'sample')} taken over from {earlier}: their rows are unchanged")


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
