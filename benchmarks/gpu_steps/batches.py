"""Steps 3 and 9: does a sample's text depend on its batch? In strict never, in fast it should."""

import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_steps.base import STOP_TOKENS, Result, Setting, run
from synthia_batch.core.types import Finished, Request
from synthia_batch.job.resolved import EngineSpec, ModelRef
from synthia_batch.job.sampling import Sampling

DTYPES = ("float16", "bfloat16")
SHORTEST = 8
"""Tokens of the shortest prompt."""


def compare_batches(setting: Setting) -> Result:
    """Step 3: each prompt at every batch size, in an order of its own, in both types."""
    result = Result()
    for dtype in DTYPES[1:] if setting.is_rehearsal else DTYPES:
        passes = _generate(setting, f"3-{dtype}", "strict", dtype, setting.batches)
        result.must[f"{dtype}: every batch generated"] = passes is not None
        if passes is None:
            continue
        reference = passes[str(setting.batches[-1])]["texts"]
        for batch, found in passes.items():
            differing = sum(found["texts"][n] != text for n, text in reference.items())
            result.must[f"{dtype}, batch {batch}: 0 differ"] = differing == 0
            result.numbers[f"{dtype}_{batch}"] = {
                "differ": differing,
                "of": len(reference),
                "s": found["seconds"],
            }
    return result


def compare_fast(setting: Setting) -> Result:
    """Step 9: fast at a batch of 8 against strict, to show that step 3 can find a difference."""
    path = setting.directory / "3-bfloat16.answers.json"
    strict = json.loads(path.read_text()) if path.exists() else None
    fast = _generate(setting, "9-fast", "fast", "bfloat16", (8,))
    if strict is None or fast is None:
        return Result(must={"strict and fast generated": False})
    reference = strict[str(setting.batches[-1])]["texts"]
    differing = sum(fast["8"]["texts"][n] != text for n, text in reference.items())
    result = Result(numbers={"differ": differing, "of": len(reference)})
    if setting.is_rehearsal:
        result.skipped.append("on CPUs fast may answer as strict does: reported")
    else:
        result.must["fast differs from strict"] = differing > 0
    return result


def _generate(
    setting: Setting, name: str, determinism: str, dtype: str, batches: Sequence[int]
) -> dict[str, Any] | None:
    """Return texts and seconds by batch, generated in a process of its own; None if that failed."""
    answers = setting.directory / f"{name}.answers.json"
    task = setting.directory / f"{name}.task.json"
    values = {"model": setting.small, "device": setting.device, "is_dummy": setting.is_dummy}
    numbers = {"prompts": setting.batch_prompts, "new_tokens": setting.new_tokens, "batches": list(batches)}
    numbers["longest"] = setting.longest_prompt
    task.write_text(json.dumps({**values, **numbers, "determinism": determinism, "dtype": dtype}))
    answers.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu_steps.batches", str(task), str(answers)]
    run(command, setting.directory / "logs" / f"{name}.log", setting.allow(500))
    return json.loads(answers.read_text()) if answers.exists() else None


def main() -> None:
    """Generate the task in the file of the first argument; the second gets the answers."""
    task = json.loads(Path(sys.argv[1]).read_text())
    from synthia_batch.workers import load_engine
    from synthia_batch.workers.engine import Placement

    engine = load_engine(_specify(task), Placement())
    requests = make_requests(task["prompts"], task["longest"])
    answers = {}
    for batch in task["batches"]:
        order = random.Random(batch).sample(requests, len(requests))
        began = time.monotonic()
        texts = generate(engine, order, batch)
        answers[str(batch)] = {"texts": texts, "seconds": round(time.monotonic() - began, 1)}
    Path(sys.argv[2]).write_text(json.dumps(answers))
    engine.close()


def generate(engine: Any, requests: Sequence[Request], batch: int) -> dict[int, str]:
    """Return the text of each request, at most `batch` of them at once."""
    waiting, running, texts = list(requests), 0, {}
    while waiting or running:
        while waiting and running < batch:
            engine.add(waiting.pop())
            running += 1
        for outcome in engine.step():
            running -= 1
            is_finished = isinstance(outcome, Finished)
            texts[outcome.ordinal] = outcome.response if is_finished else f"failed: {outcome.message}"
    return texts


def make_requests(count: int, longest: int) -> list[Request]:
    """Return prompts of random tokens: a third each greedy, with a top-p alone, and with a top-k as well."""
    kinds = ({"temperature": 0.0}, {"top_p": 0.9, "top_k": 0}, {"top_p": 0.95, "top_k": 50})
    requests = []
    for n in range(count):
        chance = random.Random(n)
        length = round(SHORTEST * (longest / SHORTEST) ** chance.random())
        token_ids = [chance.randrange(300, 30_000) for _ in range(length)]
        requests.append(Request(ordinal=n, token_ids=token_ids, seed=1000 + n, sampling=kinds[n % 3]))
    return requests


def _specify(task: dict[str, Any]) -> EngineSpec:
    model = ModelRef(name="m", path=Path(task["model"]), repo_id=None, revision=None, trust_remote_code=False)
    stops = tuple(STOP_TOKENS) if task["is_dummy"] else ()
    return EngineSpec(
        kind="vllm",
        model=model,
        device=task["device"],
        dtype=task["dtype"],
        quantization=None,
        max_model_len=1024,
        sampling=Sampling(max_tokens=task["new_tokens"], temperature=0.8, stop_token_ids=stops),
        determinism=task["determinism"],
        tensor_parallel_size=1,
        pipeline_parallel_size=1,
        settings={"load_format": "dummy"} if task["is_dummy"] else {},
    )


if __name__ == "__main__":
    main()
