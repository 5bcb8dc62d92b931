"""How far a run is, read from its directory while it goes on or afterwards."""

import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
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

    `determinism` is its class, and what that promises. `attempts` counts the times that it was
    started; `last_event` is the newest of its history. The last three are of the latest attempt
    since its first engine was ready, None where it has told nothing yet: generated tokens, the share
    of prompt tokens that came from a prefix cache, and the share of the time that an engine had
    requests, on average.
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
    determinism: str
    attempts: int
    last_event: str
    tokens_per_second: float | None
    cached_prompt_share: float | None
    busy_share: float | None

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
    history = _read_history(run_dir)
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
        determinism=_describe_determinism(plan["identity"]),
        attempts=owner.epoch if owner else 0,
        last_event=f"{history.last['kind']} at {history.last['time']}" if history.last else "none",
        **_measure_speed(history),
    )


def _describe_determinism(identity: Mapping[str, Any]) -> str:
    """Return the class of a run and what it promises; docs/determinism.md says which setting is in which."""
    if identity["determinism"] == "fast":
        return "fast: the same samples in the same files; texts may differ between batches"
    engine = identity["engine"]
    where = " on ".join(str(engine[key]) for key in ("version", "hardware") if key in engine)
    return f"strict: the same bytes for any workers and kills, with {engine['kind']} {where}"


def _describe_state(run_dir: RunDir) -> str:
    owner = find_running(run_dir)
    if owner is None:
        return "interrupted"
    return "running" if owner.host == socket.gethostname() else f"unknown: started on {owner.host}"


@dataclass(slots=True)
class _History:
    """The events that matter: the newest, and of the latest attempt the first engine and the progress."""

    last: dict[str, Any] | None = None
    ready: dict[str, Any] | None = None
    progress: dict[str, Any] | None = None


def _read_history(run_dir: RunDir) -> _History:
    history = _History()
    for event in read_events(run_dir.events):
        history.last = event
        match event.get("kind"):
            case "attempt_started":
                history.ready = history.progress = None
            case "worker_ready" if history.ready is None:
                history.ready = event
            case "progress":
                history.progress = event
    return history


def _measure_speed(history: _History) -> dict[str, float | None]:
    ready, progress = history.ready, history.progress
    nothing = dict.fromkeys(("tokens_per_second", "cached_prompt_share", "busy_share"))
    if ready is None or progress is None or not progress["samples"] or not progress["workers"]:
        return nothing
    # Both by the same clock, that of the wall: a run that had it set back meanwhile tells nothing.
    seconds = (_read_time(progress) - _read_time(ready)).total_seconds()
    if seconds <= 0:
        return nothing
    busy = sum(worker["busy_seconds"] for worker in progress["workers"])
    return {
        "tokens_per_second": round(progress["tokens"] / seconds, 1),
        "cached_prompt_share": round(progress["cached_prompt_tokens"] / max(1, progress["prompt_tokens"]), 3),
        "busy_share": round(min(1.0, busy / (len(progress["workers"]) * seconds)), 3),
    }


def _read_time(event: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(event["time"])
