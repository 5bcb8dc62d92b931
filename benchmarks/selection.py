"""What `select` costs on runs of the scripted engine: time, and the most memory.

    python -m benchmarks.selection 100000 1000000

Each run has four samples of each row. Every selection is a process of its own.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from benchmarks.journal import make_command, watch, write_questions
from benchmarks.report import count_cpu_seconds

PER_ROW = 4
STEPS = {
    "limit": ("--limit", "1000"),
    "where": ("--where", "out.completion_tokens > 6 and out.finish_reason == 'stop'"),
    "best": ("--best", "out.completion_tokens"),
    "dedup": ("--dedup", "out.response | lower"),
    "all": (
        *("--where", "out.completion_tokens > 6 and out.finish_reason == 'stop'"),
        *("--best", "out.completion_tokens", "--dedup", "out.response | lower", "--sample", "1000"),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sizes", nargs="+", type=int, help="samples per run")
    parser.add_argument("--steps", default=",".join(STEPS), help="which selections")
    parser.add_argument("--directory", type=Path, help="where to write; default: a temporary directory")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        for size in arguments.sizes:
            make_run(Path(directory) / str(size), size)
            for name in arguments.steps.split(","):
                print(json.dumps(measure(Path(directory) / str(size), size, name)), flush=True)


def make_run(directory: Path, size: int) -> None:
    directory.mkdir()
    questions = write_questions(directory, size // PER_ROW)
    flags = ("-n", str(PER_ROW), "--set", "report=false", "--set", "name=out")
    watch(make_command(questions, directory / "run", *flags))


def measure(directory: Path, size: int, name: str) -> dict[str, object]:
    output = directory / name
    used = count_cpu_seconds()
    command = [sys.executable, "-m", "synthia_batch", "select", str(directory / "run"), *STEPS[name]]
    memory, seconds = watch([*command, "-o", str(output), "--quiet"])
    return {
        "samples": size,
        "steps": name,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(count_cpu_seconds() - used, 1),
        "memory_mb": round(max(memory)),
    }


if __name__ == "__main__":
    main()
