"""What strict determinism costs on jobs whose prompts share a prefix: whole processes, in turn.

    python -m benchmarks.prefix -o benchmarks/results/DATE-prefix.md       # hours on two slow cores
    python -m benchmarks.prefix --share 0.25 --rounds 1 --jobs system,samples --dtype float32

Three jobs: questions under one system message of some 1,100 tokens; prompts of some 1,300 tokens with eight
samples each; conversations of eight turns. Sides: strict, strict without its prefix cache (as before it had
one), fast, and vLLM's own `run_batch` as it comes. Medians over the rounds; every side has the same prompts.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.throughput.machine import describe_machine
from benchmarks.throughput.process import Ended, python_command, run_process
from benchmarks.throughput.sides.run_batch import KV_CACHE_BYTES
from synthia_batch.models.demo import prepare_demo_model
from synthia_batch.results.read.status import read_status

TIMEOUT_SECONDS = 4 * 3600
MODEL_LEN = 4096
_WORDS = (
    "river", "bread", "winter", "copper", "letter", "moon", "clock", "garden", "bridge", "stone", "paper",
    "music", "harbour", "light", "window", "story", "number", "mountain", "forest", "answer", "question",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Rows of JSONL and the flags of `run`. `bodies` are the same requests for `run_batch`, if it has them.

    `targets` are the largest ratios of strict's time to that of other sides.
    """

    name: str
    rows: Sequence[Mapping[str, Any]]
    flags: Sequence[str]
    bodies: Sequence[dict[str, Any]]
    targets: Mapping[str, float]


def make_text(words: int, seed: str) -> str:
    """Return text of so many words, about as many tokens, in sentences of ten."""
    chance = random.Random(seed)
    drawn = [chance.choice(_WORDS) for _ in range(words)]
    return " ".join(" ".join(drawn[start : start + 10]) + "." for start in range(0, words, 10))


def make_system_job(share: float) -> Job:
    """Return 256 questions under one system message."""
    system, count = make_text(980, "system"), max(8, round(256 * share))
    questions = [f"{n}: {make_text(20, f'question {n}')} What follows?" for n in range(count)]
    bodies = [
        {
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": one}],
            "max_tokens": 32,
        }
        for one in questions
    ]
    return Job(
        name="system",
        rows=[{"question": one} for one in questions],
        flags=("--system", system, "--max-tokens", "32"),
        bodies=bodies,
        targets={"fast": 1.15, "run_batch": 0.65},
    )


def make_samples_job(share: float) -> Job:
    """Return 32 prompts of which each is asked eight times."""
    prompts = [make_text(1160, f"prompt {n}") + " Sum it up." for n in range(max(2, round(32 * share)))]
    body = {"max_tokens": 32, "n": 8}
    return Job(
        name="samples",
        rows=[{"question": one} for one in prompts],
        flags=("-n", "8", "--max-tokens", "32"),
        bodies=[body | {"messages": [{"role": "user", "content": one}]} for one in prompts],
        targets={"fast": 1.15, "run_batch": 0.65},
    )


def make_conversations_job(share: float) -> Job:
    """Return 64 conversations of eight turns."""
    turns = [
        [f"{make_text(20, f'turn {n} {turn}')} Go on." for turn in range(8)]
        for n in range(max(4, round(64 * share)))
    ]
    return Job(
        name="conversations",
        rows=[{"turns": one} for one in turns],
        flags=("--turns-column", "turns", "--max-tokens", "100"),
        bodies=[],
        targets={"fast": 1.15, "strict without a cache": 0.65},
    )


JOBS: Mapping[str, Callable[[float], Job]] = {
    "system": make_system_job,
    "samples": make_samples_job,
    "conversations": make_conversations_job,
}
OURS: Mapping[str, Sequence[str]] = {
    "strict": (),
    "strict without a cache": ("--set", "engine.enable_prefix_caching=false"),
    "fast": ("--determinism", "fast"),
}


def make_command(job: Job, side: str, directory: Path, dtype: str) -> list[str]:
    """Write what `side` reads into `directory`; return its command."""
    model = prepare_demo_model()
    if side != "run_batch":
        path = directory / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in job.rows))
        common = (
            "--model",
            model,
            "--set",
            f"model.dtype={dtype}",
            "--set",
            f"model.max_model_len={MODEL_LEN}",
        )
        return python_command(
            "synthia_batch", "run", path, "-o", directory / "run", *common, *job.flags, *OURS[side]
        )
    path = directory / "batch.jsonl"
    with path.open("w") as file:
        for n, body in enumerate(job.bodies):
            request = {"custom_id": str(n), "method": "POST", "url": "/v1/chat/completions"}
            whole = {"model": str(model), "seed": n, "temperature": 0.75, "top_p": 1.0, "top_k": 50} | body
            file.write(json.dumps(request | {"body": whole}) + "\n")
    # On CPUs no chunks, with which seeded sampling ends vLLM's engine there.
    flags = ["--model", model, "--max-model-len", MODEL_LEN, "--dtype", dtype, "--no-enable-chunked-prefill"]
    flags += ["--max-num-batched-tokens", MODEL_LEN, "--kv-cache-memory-bytes", KV_CACHE_BYTES]
    files = ("-i", path, "-o", directory / "answers.jsonl")
    return python_command("vllm.entrypoints.openai.run_batch", *files, *flags)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The seconds of a whole process, and the share of the prompts that its prefix cache served, if known."""

    seconds: float
    cached: float | None


def measure(job: Job, side: str, dtype: str) -> Measured:
    """Run `side` once."""
    with tempfile.TemporaryDirectory(prefix="prefix-") as directory:
        command = make_command(job, side, Path(directory), dtype)
        ended: Ended = run_process(command, {}, lambda: False, TIMEOUT_SECONDS)
        if ended.code:
            sys.exit(f"{job.name}, {side}: exit code {ended.code}\n{ended.tail(30)}")
        cached = read_status(Path(directory) / "run").cached_prompt_share if side in OURS else None
    print(f"{job.name}, {side}: {ended.seconds:.1f} s", file=sys.stderr)
    return Measured(seconds=ended.seconds, cached=cached)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", default=",".join(JOBS), help="some of them [all]")
    parser.add_argument("--sides", default=",".join((*OURS, "run_batch")), help="some of them [all]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--share", type=float, default=1.0, help="of the rows of each job [1.0]")
    parser.add_argument("--dtype", default="auto", help="such as float32 where bfloat16 is slow [auto]")
    parser.add_argument("-o", "--output", type=Path, help="the table [standard output]")
    options = parser.parse_args()
    jobs = [JOBS[name](options.share) for name in options.jobs.split(",")]
    sides = dict.fromkeys(("strict", *options.sides.split(",")))  # The others are compared with it.
    measured: dict[tuple[str, str], list[Measured]] = {}
    for _ in range(options.rounds):
        for job in jobs:
            for side in sides:
                if side != "run_batch" or job.bodies:
                    measured.setdefault((job.name, side), []).append(measure(job, side, options.dtype))
    text = describe(jobs, measured, " ".join(sys.argv[1:]))
    if options.output:
        options.output.write_text(text)
    else:
        print(text)


def describe(jobs: Sequence[Job], measured: Mapping[tuple[str, str], Sequence[Measured]], flags: str) -> str:
    """Return the table of medians, with strict's ratio to each side."""
    machine = [f"- {name}: {value}" for name, value in describe_machine().items()]
    heads = ("job", "rows", "side", "seconds, median (all)", "strict beside it", "at most", "prompts cached")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for job in jobs:
        strict = statistics.median(one.seconds for one in measured[job.name, "strict"])
        for (name, side), ones in measured.items():
            if name != job.name:
                continue
            middle = statistics.median(one.seconds for one in ones)
            every = ", ".join(f"{one.seconds:.0f}" for one in ones)
            cached = "not known" if ones[-1].cached is None else f"{100 * ones[-1].cached:.0f}%"
            row = (name, len(job.rows), side, f"{middle:.0f} ({every})", f"{strict / middle:.2f}")
            lines.append(f"| {' | '.join(map(str, (*row, job.targets.get(side, ''), cached)))} |")
    head = f"# Strict determinism on jobs with shared prefixes, {date.today().isoformat()}"
    return "\n".join([head, "", f"`python -m benchmarks.prefix {flags}`", "", *machine, "", *lines, ""])


if __name__ == "__main__":
    main()
