"""How far a run is, read from its directory while it goes on or afterwards."""

import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from synthia_batch.errors import UsageError
from synthia_batch.plan import plan_shards
from synthia_batch.store.attempt import Attempt, read_boot_id
from synthia_batch.store.events import read_events
from synthia_batch.store.intents import read_intents
from synthia_batch.store.lock import find_running, read_owner
from synthia_batch.store.manifest import read_manifest
from synthia_batch.store.plan_file import plan_digest, read_plan
from synthia_batch.store.recovery import Published, inspect_shard
from synthia_batch.store.run_dir import RunDir


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """Where a run stands. `state` is complete, running, interrupted, or unknown for another host's.

    `attempts` counts the times that it was started; `last_event` is the newest of its history.
    """

    directory: str
    name: str
    fingerprint: str
    state: str
    samples: int
    finished: int
    failed: int
    shards: int
    shards_published: int
    attempts: int
    last_event: str

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-able values."""
        return asdict(self)


def read_status(directory: Path) -> RunStatus:
    """Return where the run in `directory` stands. Only reads, and needs no lock.

    Raises:
        UsageError: It is no run directory.
        IntegrityError: What it holds is not what was written.
    """
    run_dir = RunDir(directory)
    plan = read_plan(run_dir.plan)
    if plan is None:
        raise UsageError(f"{directory}: not a run directory; name one under outputs/")
    attempt = Attempt(plan_digest=plan_digest(plan), epoch=0, boot=read_boot_id())
    shards = plan_shards(plan["scan"]["rows"], plan["samples_per_row"])
    latest = read_intents(run_dir.intents, attempt.plan_digest).latest
    states = [inspect_shard(run_dir, shard, latest, attempt) for shard in shards]
    owner = read_owner(run_dir.owner)
    return RunStatus(
        directory=str(directory),
        name=plan["name"],
        fingerprint=plan["fingerprint"],
        state="complete" if read_manifest(run_dir.manifest) else _describe_state(run_dir),
        samples=shards[-1].stop,
        finished=sum(state.finished for state in states),
        failed=sum(state.failed for state in states),
        shards=len(shards),
        shards_published=sum(isinstance(state, Published) for state in states),
        attempts=owner.epoch if owner else 0,
        last_event=_describe_last_event(run_dir),
    )


def _describe_state(run_dir: RunDir) -> str:
    owner = find_running(run_dir)
    if owner is None:
        return "interrupted"
    return "running" if owner.host == socket.gethostname() else f"unknown: started on {owner.host}"


def _describe_last_event(run_dir: RunDir) -> str:
    last: dict[str, Any] = {}
    for event in read_events(run_dir.events):
        last = event
    return f"{last['kind']} at {last['time']}" if last else "none"
