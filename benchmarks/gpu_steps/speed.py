"""Step 8: the large shape, by LLM.generate, ours fast and ours strict: tokens per second while generating."""

import json
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.gpu_steps.base import STOP_TOKENS, Result, Setting, make_run, read_events, run, write_rows
from synthia_batch.core.hardware import name_gpus
from synthia_batch.core.strict_cost import StrictCost, save_measured

LEAST_SHARE = 0.95
"""Of LLM.generate's speed that ours must have in fast."""


def compare_speed(setting: Setting) -> Result:
    """Run the three one after the other, and keep what strict costs on this card."""
    model = setting.small if setting.is_rehearsal else setting.large
    bare = _run_bare(setting, model)
    fast = _run_ours(setting, model, "fast")
    strict = _run_ours(setting, model, "strict")
    result = Result(numbers={"LLM.generate": bare, "ours_fast": fast, "ours_strict": strict})
    if fast and strict:
        result.numbers["strict_costs_times"] = round(fast / strict, 2)
    if setting.is_rehearsal:
        result.skipped.append("a few prompts on CPUs say nothing about speed: reported")
        return result
    result.must["all three ran"] = bool(bare and fast and strict)
    result.must[f"fast has at least {LEAST_SHARE} of LLM.generate"] = bool(
        bare and fast and fast >= LEAST_SHARE * bare
    )
    if fast and strict:
        cost = StrictCost(factor=fast / strict, day=date.today().isoformat())
        save_measured(name_gpus()[0], cost)
    return result


def _run_ours(setting: Setting, model: str, determinism: str) -> float | None:
    out = setting.directory / f"speed-{determinism}"
    command = make_run(
        setting,
        out,
        *[
            "--determinism",
            determinism,
            "--workers",
            "1",
            "--set",
            f"sampling.max_tokens={setting.large_tokens}",
        ],
        rows=setting.large_prompts,
        model=model,
    )
    ended = run(command, setting.directory / "logs" / f"8-{determinism}.log", setting.allow(500))
    events = [event for event in read_events(out) if event.get("kind") == "speed_measured"]
    if ended.code != 0 or not events:
        return None
    return round(float(events[-1]["tokens"]) / float(events[-1]["seconds"]), 1)


def _run_bare(setting: Setting, model: str) -> float | None:
    answer = setting.directory / "8-bare.json"
    answer.unlink(missing_ok=True)
    task = setting.directory / "8-bare.task.json"
    questions = write_rows(
        setting.directory / f"questions-{setting.large_prompts}.jsonl", setting.large_prompts
    )
    is_dummy = setting.is_dummy or model == setting.large
    values = {"model": model, "is_dummy": is_dummy, "device": setting.device, "questions": str(questions)}
    task.write_text(json.dumps({**values, "max_tokens": setting.large_tokens}))
    command = [sys.executable, "-m", "benchmarks.gpu_steps.speed", str(task), str(answer)]
    run(command, setting.directory / "logs" / "8-bare.log", setting.allow(500))
    return float(json.loads(answer.read_text())["tokens_per_second"]) if answer.exists() else None


def main() -> None:
    """Generate the task in the file of the first argument with LLM.generate; the second gets the speed."""
    task = json.loads(Path(sys.argv[1]).read_text())
    from vllm import LLM, SamplingParams

    options: dict[str, Any] = {"load_format": "dummy"} if task["is_dummy"] else {}
    if task["device"] == "cpu":
        options |= {"enforce_eager": True, "enable_chunked_prefill": False, "kv_cache_memory_bytes": 2**30}
        options |= {"max_model_len": 2048, "max_num_batched_tokens": 2048}
    llm = LLM(model=task["model"], seed=0, **options)
    lines = Path(task["questions"]).read_text().splitlines()
    chats: Any = [[{"role": "user", "content": json.loads(line)["question"]}] for line in lines]
    stops = list(STOP_TOKENS) if task["is_dummy"] else None
    params = [
        SamplingParams(seed=n, max_tokens=task["max_tokens"], stop_token_ids=stops) for n in range(len(chats))
    ]
    began = time.monotonic()
    outputs = llm.chat(chats, params, use_tqdm=False)
    seconds = time.monotonic() - began
    tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    Path(sys.argv[2]).write_text(json.dumps({"tokens_per_second": round(tokens / seconds, 1)}))


if __name__ == "__main__":
    main()
