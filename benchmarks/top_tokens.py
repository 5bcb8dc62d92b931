"""What an engine on CPUs gains from drawing tokens among those that top-k and top-p leave.

    python -m benchmarks.top_tokens --rounds 3

One engine, pinned to a core, makes the same samples with vLLM's own sampler and with ours, one after the
other, for one sampling after the other; the first pass of all is not counted. A run has as many engines
as cores: start one of these on each core at a time. Then the draw alone is timed, in the same process,
for 256 rows of random logits in bfloat16 of which 100 each stand out.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.throughput.workload import Wish, make_workload
from synthia_batch.core.types import Finished, Request
from synthia_batch.workers import load_engine
from synthia_batch.workers.engine import Engine, Placement

SAMPLINGS: Mapping[str, Mapping[str, Any]] = {
    "top_k 50": {"temperature": 0.75, "top_k": 50, "top_p": 1.0},
    "top_k 20, top_p 0.8": {"temperature": 0.7, "top_k": 20, "top_p": 0.8},
    "top_p 0.95": {"temperature": 0.75, "top_k": 0, "top_p": 0.95},
    "top_p 0.95, temperature 1": {"temperature": 1.0, "top_k": 0, "top_p": 0.95},
    "neither": {"temperature": 0.75, "top_k": 0, "top_p": 1.0},
}
VOCABULARIES = (32_001, 49_152, 151_936)
ROWS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """All samples made once."""

    seconds: float
    tokens: int
    texts: tuple[str, ...]

    @property
    def speed(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


def main() -> None:
    """Measure, and print Markdown tables of medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    wish = Wish(prompts=options.prompts, max_tokens=options.max_tokens, model_shape=None, workers=1)
    with tempfile.TemporaryDirectory() as scratch:
        workload = make_workload(wish, Path(scratch))
    engine = load_engine(workload.engine, Placement(core=options.core))

    use_ours = choose_sampler()

    def make(sampling: Mapping[str, Any]) -> Pass:
        return measure(
            engine,
            [
                Request(ordinal=n, token_ids=prompt.token_ids, seed=prompt.seed, sampling=sampling)
                for n, prompt in enumerate(workload.prompts)
            ],
        )

    make(SAMPLINGS["neither"])
    passes: dict[str, list[tuple[Pass, Pass]]] = {name: [] for name in SAMPLINGS}
    for _ in range(options.rounds):
        for name, sampling in SAMPLINGS.items():
            use_ours(False)
            theirs = make(sampling)
            use_ours(True)
            passes[name].append((theirs, make(sampling)))
    print(write_table(passes))
    print(write_draws(options.rounds, use_ours))


def choose_sampler() -> Callable[[bool], None]:
    """Return what decides between vLLM's sampler and ours, in this process from then on."""
    from synthia_batch.workers.vllm import sampler as vllm_draw

    can_draw = vllm_draw.can_draw_from_top

    def use_ours(is_ours: bool) -> None:
        vllm_draw.can_draw_from_top = can_draw if is_ours else lambda *_: False

    return use_ours


def write_draws(rounds: int, use_ours: Callable[[bool], None]) -> str:
    """Return one line per vocabulary and sampling: milliseconds of a draw, medians over the rounds."""
    import torch
    from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

    lines = ["| vocabulary | sampling | vLLM's, ms | ours, ms |", "| --- | --- | --- | --- |"]
    for vocabulary in VOCABULARIES:
        logits = torch.randn(ROWS, vocabulary)
        logits[:, :: vocabulary // 100] += 9
        logits = logits.bfloat16().float()
        few, share = torch.full((ROWS,), 50, dtype=torch.int32), torch.full((ROWS,), 0.9)
        both = ("top_k 50, top_p 0.9", few, share)
        for name, k, p in (("top_k 50", few, None), both, ("top_p 0.9", None, share)):
            taken: dict[bool, list[float]] = {False: [], True: []}
            for is_ours in (False, True) * rounds:
                use_ours(is_ours)
                given, began = logits.clone(), time.perf_counter()
                TopKTopPSampler().forward_cpu(given, {}, k, p)
                taken[is_ours].append(1000 * (time.perf_counter() - began))
            medians = (f"{statistics.median(taken[is_ours]):,.0f}" for is_ours in (False, True))
            lines.append(f"| {vocabulary:,} | {name} | {' | '.join(medians)} |")
    return "\n".join(lines)


def measure(engine: Engine, requests: Sequence[Request]) -> Pass:
    """Make `requests`."""
    began = time.monotonic()
    for request in requests:
        engine.add(request)
    made: dict[int, Finished] = {}
    while len(made) < len(requests):
        for outcome in engine.step():
            assert isinstance(outcome, Finished), outcome
            made[outcome.ordinal] = outcome
    return Pass(
        seconds=time.monotonic() - began,
        tokens=sum(one.completion_tokens for one in made.values()),
        texts=tuple(made[n].response for n in sorted(made)),
    )


def write_table(passes: Mapping[str, Sequence[tuple[Pass, Pass]]]) -> str:
    """Return one line per sampling: medians over the rounds."""
    lines = [
        "| sampling | vLLM's, tokens/s | ours, tokens/s | ratio | one round | same texts |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, pairs in passes.items():
        theirs, ours = (statistics.median(one.speed for one in side) for side in zip(*pairs, strict=True))
        ratios = sorted(mine.speed / other.speed for other, mine in pairs)
        texts = [one.texts for one in pairs[0]]
        same = f"{sum(a == b for a, b in zip(*texts, strict=True))} of {len(texts[0])}"
        cells = (name, f"{theirs:,.0f}", f"{ours:,.0f}", f"{ours / theirs:.2f}")
        lines.append(f"| {' | '.join(cells)} | {ratios[0]:.2f} to {ratios[-1]:.2f} | {same} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
