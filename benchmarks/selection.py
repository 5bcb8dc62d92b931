"""What `select` costs on runs of the scripted engine: time, and the most memory.

    python -m benchmarks.selection 100000 1000000

Each run has four samples of each row. Every selection is a process of its own. The benchmark that samples are
compared with has 10,000 texts of 100 words.
"""

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.journal import make_command, watch, write_questions
from benchmarks.report import count_cpu_seconds

PER_ROW = 4
STEPS = {
    "limit": ("--limit", "1000"),
    "where": ("--where", "out.completion_tokens > 6 and out.finish_reason == 'stop'"),
    "best": ("--best", "out.completion_tokens"),
    "dedup": ("--dedup", "out.response | lower"),
    "combine": ("--combine", "tokens=mean:out.completion_tokens", "--where", "tokens > 6"),
    "decontaminate": ("--decontaminate", "out.response", "--against", "benchmark.jsonl", "--column", "text"),
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


def write_texts() -> Iterator[str]:
    """Yield the lines of the benchmark."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 9))) for _ in range(20_000)]
    for _ in range(10_000):
        yield json.dumps({"text": " ".join(draw.choices(words, k=100))}) + "\n"


def measure(directory: Path, size: int, name: str) -> dict[str, object]:
    output, benchmark = directory / name, directory / "benchmark.jsonl"
    if not benchmark.exists():
        benchmark.write_text("".join(write_texts()))
    steps = [str(benchmark) if word == benchmark.name else word for word in STEPS[name]]
    used = count_cpu_seconds()
    command = [sys.executable, "-m", "synthia_batch", "select", str(directory / "run"), *steps]
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
