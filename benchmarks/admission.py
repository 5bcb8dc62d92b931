"""What the number of prompt tokens that a CPU engine lets in per step costs and brings.

    python -m benchmarks.admission --budgets 256,512,1024,2048,8192 --rounds 3

One engine, pinned to a core, makes the same samples, longest first as in a run, with one budget after
the other; the first pass of all is not counted. A run has as many engines as cores: start one of these
on each core at a time.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.throughput.workload import Wish, make_workload
from synthia_batch.core.types import Request
from synthia_batch.workers import load_engine
from synthia_batch.workers.engine import Engine, Placement
from synthia_batch.workers.vllm import admission as vllm_admission


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """All samples made once: seconds to the first that ended and to the last."""

    first_seconds: float
    seconds: float
    steps: int


def main() -> None:
    """Measure, and print a Markdown table of medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--budgets", default="256,512,1024,2048,8192")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    budgets = [int(budget) for budget in options.budgets.split(",")]
    wish = Wish(prompts=options.prompts, max_tokens=options.max_tokens, model_shape=None, workers=1)
    with tempfile.TemporaryDirectory() as scratch:
        workload = make_workload(wish, Path(scratch))
    prompts = sorted(workload.prompts, key=lambda prompt: len(prompt.token_ids), reverse=True)
    requests = [Request(ordinal=n, token_ids=p.token_ids, seed=p.seed) for n, p in enumerate(prompts)]
    engine = load_engine(workload.engine, Placement(core=options.core))
    measure(engine, requests, budgets[0])
    passes: dict[int, list[Pass]] = {budget: [] for budget in budgets}
    for _ in range(options.rounds):
        for budget in budgets:
            passes[budget].append(measure(engine, requests, budget))
    print(write_table(passes))


def measure(engine: Engine, requests: list[Request], budget: int) -> Pass:
    """Make `requests` with `budget` prompt tokens per step."""
    vllm_admission.CPU_PREFILL_TOKENS = budget
    began = time.monotonic()
    for request in requests:
        engine.add(request)
    first, left, steps = 0.0, len(requests), 0
    while left:
        ended = len(engine.step())
        left -= ended
        steps += 1
        first = first or (time.monotonic() - began if ended else 0.0)
    return Pass(first_seconds=first, seconds=time.monotonic() - began, steps=steps)


def write_table(passes: dict[int, list[Pass]]) -> str:
    """Return one line per budget: medians over the rounds."""
    lines = ["| prompt tokens per step | first sample, s | all, s | steps |", "| --- | --- | --- | --- |"]
    for budget, made in passes.items():
        first = statistics.median(one.first_seconds for one in made)
        whole = statistics.median(one.seconds for one in made)
        lines.append(f"| {budget:,} | {first:.1f} | {whole:.1f} | {made[0].steps} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
