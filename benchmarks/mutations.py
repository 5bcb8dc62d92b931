"""Planted mutations: which of them are caught, and by what?

    python -m benchmarks.mutations --seeds 0..20000 --seconds 120 --only 3,7
    python -m benchmarks.mutations --tests --seed 1 --count 20 --results mutants.jsonl

Those of the list below are for the simulator: each is planted alone in a throw-away copy of the package and
its tests, and schedules run until one violates an invariant, or until the seeds or the seconds (of the clock,
for each mutation) are over. With `--tests`, others are drawn with a seed from five packages and tried against
the tests of their package; the same command goes on where an earlier one stopped. Prints a line of a Markdown
table for each.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from benchmarks.mutants import TESTS, Mutant, draw_mutants, read_verdicts, try_mutants, write_table

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """What `name` says is planted by replacing `old` by `new` in `file`, once for each pair of them."""

    name: str
    file: str
    replaced: tuple[tuple[str, str], ...]


_PUBLISH = "storage/publish.py"
_APPEND = "    ledger.append(shard_entry)\n"
_PUT_DATA = "    _put_part(run_dir.data_part(shard), encoded.data)\n"
_REMOVE = "    remove_file(journal.path)\n"

MUTATIONS = (
    Mutation(
        name="the ledger's entry after the parts",
        file=_PUBLISH,
        replaced=((_APPEND, ""), (_PUT_DATA, _PUT_DATA + _APPEND)),
    ),
    Mutation(
        name="the journal removed before the data part is in place",
        file=_PUBLISH,
        replaced=((_REMOVE, ""), (_PUT_DATA, _REMOVE + _PUT_DATA)),
    ),
    Mutation(
        name="no fsync of a file before its rename",
        file="storage/atomic.py",
        replaced=(("            sync_file(fd, path)\n", ""),),
    ),
    Mutation(
        name="no sync of a directory after a rename",
        file="storage/atomic.py",
        replaced=(("undo the rename.\n    sync_directory(path.parent)\n", "undo the rename.\n"),),
    ),
    Mutation(
        name="a torn tail stays",
        file="storage/journal/append_file.py",
        replaced=(("if os.fstat(fd).st_size > kept_bytes:", "if False:"),),
    ),
    Mutation(
        name="a failed sync leaves no mark",
        file="storage/journal/append_file.py",
        replaced=(('write_all(fd, b"\\n" + encode_frame({UNSYNCED: self.synced_bytes}))', "pass"),),
    ),
    Mutation(
        name="unfinished conversations begin anew",
        file="scheduler/multi_turn.py",
        replaced=(("        for turn in turns:\n", "        for turn in turns[:0]:\n"),),
    ),
    Mutation(
        name="one death alone is enough for quarantine",
        file="scheduler/crash_bisection.py",
        replaced=(("DEATHS_ALONE = 2", "DEATHS_ALONE = 1"),),
    ),
    Mutation(
        name="running out of memory makes suspects",
        file="scheduler/supervisor.py",
        replaced=(("suspects_samples=not is_innocent", "suspects_samples=True"),),
    ),
    Mutation(
        name="requests of a lost worker are forgotten",
        file="scheduler/dispatcher.py",
        replaced=(("            self._returned.extend(held)\n", "            pass\n"),),
    ),
    Mutation(
        name="recalled requests are forgotten",
        file="scheduler/dispatcher.py",
        replaced=(
            (
                "            self._returned.extend(request for request in returned if request is not None)\n",
                "            list(returned)\n",
            ),
        ),
    ),
    Mutation(
        name="messages of a dead worker count",
        file="scheduler/driver.py",
        replaced=(
            (
                "        is_current = self._supervisor.policy.is_current(event.worker, event.epoch)\n",
                "        is_current = True\n",
            ),
        ),
    ),
    Mutation(
        name="a journal of the epoch after a publication counts as older",
        file="storage/recovery.py",
        replaced=(("replayed.epoch <= shard_entry.epoch)", "replayed.epoch <= shard_entry.epoch + 1)"),),
    ),
    Mutation(
        name="after a failed sync the next process trusts the journal",
        file="storage/journal/writer.py",
        replaced=(("        if replayed.is_doubtful:\n", "        if False:\n"),),
    ),
    Mutation(
        name="journals are not synced when due",
        file="storage/journal/writer.py",
        replaced=(("        self.sync()\n        return True\n", "        return True\n"),),
    ),
    Mutation(
        name="a candidate is journaled as a turn of a conversation",
        file="scheduler/multi_turn.py",
        replaced=(
            (
                "        turn = make_turn(answer, number, answer.finish_reason, is_candidate=True)\n",
                "        turn = make_turn(answer, number, answer.finish_reason)\n",
            ),
        ),
    ),
)


def plant(mutation: Mutation, copy: Path) -> None:
    """Plant `mutation` in the copy of the repository. Raises ValueError if the code is not as it expects."""
    path = copy / "synthia_batch" / mutation.file
    text = path.read_text()
    for old, new in mutation.replaced:
        if text.count(old) != 1:
            raise ValueError(f"{mutation.name}: {mutation.file} has {text.count(old)} times {old!r}")
        text = text.replace(old, new)
    path.write_text(text)


def try_mutation(mutation: Mutation, seeds: str, seconds: float) -> str:
    """Return the row of the table for `mutation`."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as name:
        copy = Path(name)
        for folder in ("synthia_batch", "tests"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / folder, copy / folder, ignore=ignored)
        plant(mutation, copy)
        started = time.monotonic()
        command = [sys.executable, "-m", "tests.simulation", "--seeds", seeds, "--stop", "--no-shrink"]
        environment = {**os.environ, "PYTHONPATH": name, "PYTHONDONTWRITEBYTECODE": "1"}
        command += ["--seconds", str(seconds)]
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
        took = time.monotonic() - started
    lines = done.stdout.splitlines()
    if done.returncode == 0 and lines:
        return f"| {mutation.name} | **not** in {lines[-1].split()[0]} schedules | {took:.0f} s |"
    if not lines:
        raise RuntimeError(done.stderr)
    caught = ": ".join(lines[0].split(": ")[:2])
    return f"| {mutation.name} | {caught} | {took:.0f} s |"


def try_at_random(mutants: list[Mutant], results: Path, seconds: float) -> None:
    """Try `mutants`, and print the verdicts on all of them, those of earlier calls first."""
    earlier = [one for one in read_verdicts(results) if one.mutant in mutants]
    for line in write_table(chain(earlier, try_mutants(ROOT, mutants, results, seconds=seconds))):
        print(line, flush=True)
    verdicts = [one for one in read_verdicts(results) if one.mutant in mutants]
    print(f"\n{sum(one.is_caught for one in verdicts)} of {len(verdicts)} caught")


def main() -> None:
    """Try the mutations asked for, one after the other."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutations")
    parser.add_argument("--seeds", default="0..20000", help="FIRST..LAST without LAST")
    parser.add_argument("--seconds", type=float, default=3600.0, help="at most, for each mutation")
    parser.add_argument("--only", default="", help="their numbers, counted from 1, separated by commas")
    parser.add_argument("--tests", action="store_true", help="mutants at random, against the tests")
    parser.add_argument("--seed", type=int, default=0, help="of the mutants at random")
    parser.add_argument("--packages", default=",".join(TESTS), help="of the mutants at random")
    parser.add_argument("--count", type=int, default=10, help="of the mutants at random")
    parser.add_argument(
        "--results", type=Path, default=Path("mutants.jsonl"), help="where their verdicts are kept"
    )
    options = parser.parse_args()
    if options.tests:
        mutants = draw_mutants(ROOT, options.seed, options.count, options.packages.split(","))
        try_at_random(mutants, options.results, options.seconds)
        return
    only = {int(number) for number in options.only.split(",") if number}
    print("| mutation | caught by | time |", "|---|---|---|", sep="\n", flush=True)
    for number, mutation in enumerate(MUTATIONS, start=1):
        if not only or number in only:
            print(try_mutation(mutation, options.seeds, options.seconds), flush=True)


if __name__ == "__main__":
    main()
