"""What must be true of every schedule, each a function that raises Violation under its own name."""

from simulation.attempt import Ended
from simulation.faults import Violation
from simulation.jobs import read_output
from simulation.schedule import Attempt
from simulation.world import World
from synthia_batch.errors import PoolFailed, StorageFailed
from synthia_batch.results.verify.verify import verify_run


def published_files_are_final(world: World) -> None:
    """Every part that is visible has the bytes that it has in the undisturbed run."""
    if world.has_transient_failures:
        return
    found = [*read_output(world.directory).items(), *world.store.read_dataset().items()]
    for name, content in found:
        if content != world.simulated.expected.get(name):
            raise Violation("published_files_are_final", f"{name} has other bytes, or should not be there")


def only_a_cause_ends_an_attempt(attempt: Attempt, ended: Ended) -> None:
    """An error comes only of what befell the attempt; nothing is refused as damaged."""
    match ended.error:
        case None:
            return
        case StorageFailed() if attempt.ending in ("full disk", "failed sync") or attempt.weather.store:
            return
        case KeyboardInterrupt() if attempt.ending == "interrupt":
            return
        case PoolFailed() if any(
            (attempt.weather.death, attempt.weather.load, attempt.weather.lost, attempt.weather.hang)
        ):
            return
    raise Violation("only_a_cause_ends_an_attempt", f"{type(ended.error).__name__}: {ended.error}")


def a_calm_attempt_completes_the_run(ended: Ended) -> None:
    """Without faults, one more attempt is enough."""
    if not ended.is_complete:
        raise Violation("a_calm_attempt_completes_the_run", f"{ended.error or 'it ended early'}")


def bytes_equal_the_undisturbed_run(world: World) -> None:
    """Every sample once, in data/ or failed/, and only fatal ones blamed: the files are those of that run."""
    compare_files(read_output(world.directory), world.simulated.expected)
    if world.shape.is_remote:
        compare_files(world.store.read_dataset(), world.simulated.expected)


def compare_files(found: dict[str, bytes], expected: dict[str, bytes]) -> None:
    """Files, by name, are those that were expected."""
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            what = (
                "is missing"
                if name not in found
                else "was not expected"
                if name not in expected
                else "differs"
            )
            raise Violation("bytes_equal_the_undisturbed_run", f"{name} {what}")


def nothing_is_left_over(world: World) -> None:
    """A complete run has no journals and no temporary files."""
    hidden = world.directory / ".synthia"
    left = [*(hidden / "journal").glob("*"), *world.directory.rglob(".*.tmp")]
    if left:
        raise Violation("nothing_is_left_over", str(left[0]))


def verify_is_clean(world: World) -> None:
    """`verify` finds no fault in the complete run."""
    found = verify_run(world.directory, lambda done, total: None)
    if found.findings or found.state != "complete":
        raise Violation("verify_is_clean", f"{found.state}: {found.findings}")
