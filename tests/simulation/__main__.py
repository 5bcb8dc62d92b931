"""Run schedules: `python -m tests.simulation --seeds 1000..2000`, or `make simulate SEEDS=1000..2000`.

A failing seed prints the invariant that it violates, the command that replays it, and the smallest schedule
found that violates it, too. Exit code 1 if there was one.
"""

import argparse
import sys
import time
from math import inf
from pathlib import Path

# The modules that tests share, as pytest finds them.
TESTS = Path(__file__).parent.parent
sys.path[:0] = [str(TESTS), str(TESTS / "faults")]

from simulation.schedule import draw_schedule  # noqa: E402
from simulation.shrink import shrink  # noqa: E402
from simulation.simulate import Simulator, open_simulator  # noqa: E402


def main() -> int:
    """Run the schedules of the seeds named; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seeds", default="0..2000", help="FIRST..LAST without LAST, or one seed")
    parser.add_argument("--stop", action="store_true", help="stop at the first violation")
    parser.add_argument("--seconds", type=float, default=inf, help="of the clock; then no more are begun")
    parser.add_argument("--no-shrink", action="store_true", help="leave failing schedules as they are")
    options = parser.parse_args()
    first, _, last = options.seeds.partition("..")
    seeds = range(int(first), int(last or int(first) + 1))
    started, done, failed = time.process_time(), 0, 0
    end = time.monotonic() + options.seconds
    with open_simulator() as simulator:
        try:
            for seed in seeds:
                failed += run_seed(simulator, seed, shrinks=not options.no_shrink)
                done += 1
                if (failed and options.stop) or time.monotonic() > end:
                    break
        except KeyboardInterrupt:
            print(f"interrupted; go on with --seeds {seeds[0] + done}..{seeds[-1] + 1}")
    rate = done / (time.process_time() - started)
    print(f"{done} schedules, {failed} violations, {rate:.1f} a second of CPU time")
    return 1 if failed else 0


def run_seed(simulator: Simulator, seed: int, *, shrinks: bool) -> bool:
    """Run the schedule of `seed`; return whether it violates an invariant, and print how."""
    schedule = draw_schedule(seed)
    violation = simulator.run(schedule)
    if violation is None:
        return False
    print(f"seed {seed}: {violation}", f"  replay: make simulate SEEDS={seed}", sep="\n", flush=True)
    if shrinks:
        print(f"  smallest: {shrink(schedule, simulator.run)}", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
