"""One engine of the determinism matrix, in a process of its own: its passes, token for token.

    python -m benchmarks.determinism_pass SETUP.json DIRECTORY

Leaves a file per pass in DIRECTORY: the tokens of each prompt, and how full the engine was.
"""

import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from synthia_batch.core.types import Outcome, Request
from synthia_batch.job.resolved import EngineSpec, ModelRef
from synthia_batch.job.sampling import Sampling
from synthia_batch.models.checkpoint import read_model_facts
from synthia_batch.models.prompts.system_messages import select_system_message
from synthia_batch.models.prompts.tokenizer import FastTokenizer
from synthia_batch.workers.engine import Placement
from synthia_batch.workers.environment import prepare_environment
from synthia_batch.workers.vllm import admission as vllm_admission

SHORTEST, LONGEST = 8, 1500
"""Tokens of a prompt; lengths in between are spread evenly over their logarithm."""
MAX_MODEL_LEN = 2048
PREFIX_TOKENS = (1100, 3000, 300, 0, 100)
"""Lengths of the prefixes that prompts share."""
_TEXTS = ("synthia", "tree-of-thoughts", "tree-of-thoughts-v3", "superintelligence")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One time through all prompts, at most `batch` of them at once, in an order of its own.

    `is_warm`: the prefix cache keeps what the pass before left there; otherwise it is empty.
    """

    name: str
    batch: int
    is_warm: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """An engine and its passes. `settings` are vLLM's; `prefill_tokens` is what one step
    may let in, None for as much as ever.

    `pads`: small GEMMs are padded, as strict has it. `reserves`: only what fits the KV cache at its
    longest is let in, as strict has it; otherwise vLLM preempts. `shares`: prompts share prefixes, and some
    are asked eight times. `cuts`: prefixes are cut where the prompts say, as strict has it; otherwise vLLM
    takes what it finds.
    """

    name: str
    model: str
    prompts: int
    new_tokens: int
    passes: Sequence[Pass]
    core: int | None = None
    dtype: str = "auto"
    settings: dict[str, Any]
    prefill_tokens: int | None = None
    pads: bool = True
    reserves: bool = True
    shares: bool = False
    cuts: bool = True


def main() -> None:
    said = json.loads(Path(sys.argv[1]).read_text())
    setup = Setup(**{**said, "passes": [Pass(**one) for one in said["passes"]]})
    directory = Path(sys.argv[2])
    make = make_sharing_requests if setup.shares else make_requests
    requests = make(Path(setup.model), setup.prompts)
    engine = load(setup)
    for number, one in enumerate(setup.passes):
        if not one.is_warm:
            engine.empty_prefix_cache()
        result = engine.run(requests, one.batch, random.Random(f"{setup.name} {number}"))
        path = directory / f"{setup.name}-{one.name}.json"
        path.write_text(json.dumps({"setup": asdict(setup), "batch": one.batch, **result}))
        print(f"{path.name}: {result['seconds']:.0f} s, at most {result['largest']} at once", file=sys.stderr)


def make_requests(model: Path, count: int) -> list[Request]:
    """Return prompts of real words in a fixed order of their own, the same for any `count` that has them."""
    tokenizer = FastTokenizer(read_model_facts(model).tokenizer_path)
    words = " ".join(select_system_message(name).text for name in _TEXTS).split()
    requests = []
    for n in range(count):
        chance = random.Random(n)
        length = round(SHORTEST * (LONGEST / SHORTEST) ** chance.random())
        text = " ".join(chance.choice(words) for _ in range(length))
        token_ids = list(tokenizer.encode(text, adds_start=True, reads_special=False))[:length]
        requests.append(Request(ordinal=n, token_ids=token_ids, seed=1000 + n))
    return requests


def make_sharing_requests(model: Path, count: int) -> list[Request]:
    """Return `count` requests under prefixes of PREFIX_TOKENS, every second eight of them the same prompt."""
    base = make_requests(model, count + 100)
    words = [token for request in base for token in request.token_ids]
    requests: list[Request] = []
    while len(requests) < count:
        chance = random.Random(f"shared {len(requests)}")
        group, eight = divmod(len(requests) // 8, 2)
        opening = PREFIX_TOKENS[group % len(PREFIX_TOKENS)]
        for _ in range(8):
            if not eight or len(requests) % 8 == 0:
                start, length = chance.randrange(5000), chance.randint(10, 300)
                prompt = [*words[:opening], *words[start : start + length]]
            cuts = [opening, len(prompt) - 1] if eight else [opening]
            number = len(requests)
            requests.append(Request(ordinal=number, token_ids=prompt, seed=7000 + number, cuts=tuple(cuts)))
    return requests[:count]


def load(setup: Setup) -> Any:
    """Return the engine of `setup`, which tells tokens instead of text."""
    spec = EngineSpec(
        kind="vllm",
        model=ModelRef(
            name="m", path=Path(setup.model), repo_id=None, revision=None, trust_remote_code=False
        ),
        device="cpu",
        dtype=setup.dtype,
        quantization=None,
        max_model_len=2 * MAX_MODEL_LEN if setup.shares else MAX_MODEL_LEN,
        sampling=Sampling(max_tokens=setup.new_tokens),
        determinism="strict",
        tensor_parallel_size=1,
        pipeline_parallel_size=1,
        settings=setup.settings,
    )
    placement = Placement(core=setup.core, neighbours=2)
    prepare_environment(spec, placement)
    # Not before the environment stands.
    from vllm import SamplingParams

    from synthia_batch.workers.vllm import engine as vllm_engine
    from synthia_batch.workers.vllm import prefix_cache

    if not setup.pads:
        vars(vllm_engine)["make_gemms_batch_invariant"] = lambda: None
    if setup.prefill_tokens is not None:
        vllm_admission.CPU_PREFILL_TOKENS, vllm_admission.CPU_FIRST_STEPS = setup.prefill_tokens, 0

    class TellingEngine(vllm_engine.VllmEngine):
        """Keeps the tokens of each answer; every second prompt is answered greedily."""

        def run(self, requests: Sequence[Request], batch: int, chance: random.Random) -> dict[str, Any]:
            self.tokens: dict[int, list[int]] = {}
            self._budget = vllm_admission.StepBudget(batch)
            if not setup.reserves:
                self._kv_budget = None
            if not setup.cuts:
                self._prefixes = None
            preempted = self._count_preemptions()
            cached = self.cached_prompt_tokens
            begun, ended, largest = time.monotonic(), 0, 0
            for request in chance.sample(list(requests), len(requests)):
                self.add(request)
            while ended < len(requests):
                ended += len(self.step())
                largest = max(largest, len(self._running))
            if largest > batch:
                raise AssertionError(f"{largest} ran at once where {batch} were to: this compares nothing")
            return {
                "tokens": self.tokens,
                "seconds": round(time.monotonic() - begun, 1),
                "largest": largest,
                "preempted": preempted[0],
                "cached": self.cached_prompt_tokens - cached,
            }

        def empty_prefix_cache(self) -> None:
            """Leave nothing of earlier passes."""
            self._engine.reset_prefix_cache()
            if self._prefixes is not None:
                self._prefixes = prefix_cache.PrefixCache(self._engine, self._engine.vllm_config.cache_config)

        def _finish(self, output: Any) -> list[Outcome]:
            ended = super()._finish(output)
            if ended:  # Neither a segment nor a request that is made again.
                self.tokens[int(output.request_id)] = list(output.outputs[0].token_ids)
            return ended

        def _make_params(self, request: Request) -> SamplingParams:
            params = super()._make_params(request)
            if request.ordinal % 2 == 0:
                return params
            return SamplingParams(temperature=0, max_tokens=params.max_tokens, output_kind=params.output_kind)

        def _count_preemptions(self) -> list[int]:
            scheduler: Any = self._engine.engine_core.engine_core.scheduler  # type: ignore[attr-defined]
            count, preempt = [0], type(scheduler)._preempt_request

            def counted(*arguments: Any, **keywords: Any) -> Any:
                count[0] += 1
                return preempt(scheduler, *arguments, **keywords)

            scheduler._preempt_request = counted
            return count

    return TellingEngine(spec, placement)


if __name__ == "__main__":
    main()
