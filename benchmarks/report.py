"""What a run's report and its dataset card cost, on runs of the scripted engine.

    python -m benchmarks.report 100000 --words 200       # answers of up to 200 words
    python -m benchmarks.report 1000000                  # of up to 24, the engine's own

Each run is made in a process of its own, without a report; then `report` is, with its memory over time,
and the pass over the parts that the card needs is timed in this process.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.journal import make_command, watch, write_questions
from synthia_batch.results.report.card import CardFacts, read_card_data
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.manifest import read_manifest
from synthia_batch.storage.plan_file import read_plan


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sizes", nargs="+", type=int, help="samples per run")
    parser.add_argument("--words", type=int, default=24, help="the longest answer, 256 at most")
    parser.add_argument("--directory", type=Path, help="where to write; default: a temporary directory")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        for size in arguments.sizes:
            print(json.dumps(measure(Path(directory), size, arguments.words)), flush=True)


def measure(directory: Path, size: int, words: int) -> dict[str, object]:
    output = directory / f"out{size}"
    settings = ("report=false", f"engine.max_words={words}", "engine.fail_every=1000")
    flags = [flag for setting in settings for flag in ("--set", setting)]
    _, run_seconds = watch(make_command(write_questions(directory, size), output, *flags))
    used = count_cpu_seconds()
    memory, seconds = watch([sys.executable, "-m", "synthia_batch", "report", str(output)])
    used = count_cpu_seconds() - used
    card_seconds = time_card(output)
    return {
        "samples": size,
        "words": words,
        "run_seconds": round(run_seconds, 1),
        "data_mb": round(sum(path.stat().st_size for path in (output / "data").iterdir()) / 1e6, 1),
        "report_seconds": round(seconds, 1),
        # On a machine that others use as well, this is what can be compared.
        "report_cpu_seconds": round(used, 1),
        "report_memory_mb": round(max(memory)),
        "report_bytes": RunDir(output).report.stat().st_size,
        "card_pass_cpu_seconds": round(card_seconds, 2),
        "card_pass_cpu_seconds_per_million": round(card_seconds / size * 1e6, 2),
    }


def count_cpu_seconds() -> float:
    """Return what the processes that this one has waited for have computed so far."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def time_card(output: Path) -> float:
    """Return the CPU seconds that the card's pass over the parts takes."""
    run_dir = RunDir(output)
    manifest, plan = read_manifest(run_dir.manifest), read_plan(run_dir.plan)
    if manifest is None or plan is None:
        raise SystemExit(f"{output} is not complete")
    facts = CardFacts(
        name="", model="", source="", command="", systems={}, identity=plan["identity"], licence=None
    )
    started = time.process_time()
    read_card_data(run_dir, facts, manifest)
    return time.process_time() - started


if __name__ == "__main__":
    main()
