"""What is said of lost workers: who died of what, what comes next, and what their logs end with."""

from pathlib import Path

from synthia_batch.workers.pools.base import WorkerLost

LOG_TAIL_LINES = 20


def describe_loss(event: WorkerLost, unfinished: int, pause: float | None, has_less: bool, log: Path) -> str:
    """Return who died and what comes next. `pause`: seconds until it starts again, None if it never does.

    `has_less` says that it will have less memory; `unfinished` samples go back to the queue.
    """
    what = "is given up" if pause is None else f"starts again in {pause:.1f} s"
    if has_less and pause is not None:
        what += " with less memory: half the batch, or a smaller KV cache"
    how = event.cause.value
    if event.refused is not None:
        why, _, _ = str(event.refused).partition("\n")
        how = f"could not load its engine ({why})"
    return (
        f"worker {event.worker} {how} and {what}; {unfinished} unfinished samples go "
        f"back to the queue (log: {log})"
    )


def explain_failure(event: WorkerLost, log: Path) -> str:
    """Return why no worker is left, where the last one died as `event` says."""
    parts = ["no worker is left; what was finished is kept. The last one died of:", event.reason.strip()]
    tail = read_tail(log)
    if tail:
        parts += [f"the last lines of {log}:", tail]
    parts.append("mend the cause, then run the same command again")
    return "\n".join(parts)


def read_tail(log: Path) -> str:
    """Return the last lines of a worker's log; nothing where there is none."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])
    except OSError:
        return ""
