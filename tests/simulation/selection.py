"""A selection of the complete run, on a disk of its own: ended at any moment, then made in a calm attempt."""

from pathlib import Path
from random import Random

from simulation.attempt import Ended
from simulation.disk import DiskFault, SimulatedDisk, use_disk
from simulation.faults import Killed, Violation
from simulation.jobs import read_output
from simulation.schedule import ENDINGS, Shape
from synthia_batch.errors import NothingSelected, StorageFailed
from synthia_batch.job.select import Select
from synthia_batch.results.verify.verify import verify_run
from synthia_batch.runner.selection import select_samples

SELECTIONS = (
    Select(where="simulated.completion_tokens > 100"),
    Select(best="simulated.completion_tokens"),
    Select(dedup="simulated.response", limit=3),
    Select.model_validate(
        {"combine": {"tokens": {"max": "simulated.completion_tokens"}}, "where": "tokens > 100"}
    ),
)
CALLS = 80
"""About as many changes of the disk as a selection makes."""


def make_selection(run: Path, shape: Shape) -> dict[str, bytes]:
    """Return the files of the selection of `shape` from its undisturbed run; none if it keeps no sample."""
    disk = SimulatedDisk(_name(run), Random(0))
    ended = _select(run, shape, disk, DiskFault())
    return read_output(disk.root) if ended.is_complete else {}


def try_selections(run: Path, shape: Shape, expected: dict[str, bytes], draw: Random) -> None:
    """Make the selection of `shape` in attempts that end anyhow, then in a calm one, and check its files."""
    disk = SimulatedDisk(_name(run), Random(draw.random()))
    for _ in range(draw.randint(1, 2)):
        ending = draw.choice([ending for ending in ENDINGS if ending not in ("drain", "interrupt")])
        ended = _select(run, shape, disk, DiskFault(ending, draw.randint(1, CALLS), draw.random()))
        is_caused = isinstance(ended.error, StorageFailed) and ending in ("full disk", "failed sync")
        if not is_caused and not isinstance(ended.error, NothingSelected | None):
            raise Violation("only_a_cause_ends_a_selection", f"{type(ended.error).__name__}: {ended.error}")
        if ending == "power loss" and disk.is_dead:
            disk.lose_power()
    _select(run, shape, disk, DiskFault())
    found = read_output(disk.root)
    if found != expected:
        raise Violation("selections_are_equal", f"{sorted(found)}, expected {sorted(expected)}")
    if expected:
        checked = verify_run(disk.root, lambda done, total: None)
        if checked.findings or checked.state != "complete":
            raise Violation("verify_is_clean", f"selection: {checked.state}: {checked.findings}")


def _name(run: Path) -> Path:
    return run.with_name("selected")


def _select(run: Path, shape: Shape, disk: SimulatedDisk, fault: DiskFault) -> Ended:
    disk.begin(fault)
    use_disk(disk)
    try:
        select_samples(run, SELECTIONS[shape.number // 16 % len(SELECTIONS)], disk.root, reports=False)
        return Ended(is_complete=True)
    except Killed:
        return Ended(is_killed=True)
    except (NothingSelected, StorageFailed) as exc:
        return Ended(is_killed=True) if disk.is_dead else Ended(error=exc)
    except Exception:
        if disk.is_dead:
            return Ended(is_killed=True)
        raise
    finally:
        use_disk(None)
        disk.end()
