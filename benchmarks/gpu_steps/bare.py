"""Step 7: vLLM alone under batch invariance, with what strict leaves out.

Only reported: it decides what strict may allow. Each variant is a process of its own, since vLLM reads its
variables on import.
"""

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu_steps.base import STOP_TOKENS, Result, Setting, run

VARIANTS: dict[str, dict[str, Any]] = {
    "reference": {"attention_backend": "TRITON_ATTN"},
    "chunked prefill": {
        "attention_backend": "TRITON_ATTN", "enable_chunked_prefill": True, "max_num_batched_tokens": 512,
    },
    "prefix cache": {"attention_backend": "TRITON_ATTN", "enable_prefix_caching": True},
    "preemption": {"attention_backend": "TRITON_ATTN", "num_gpu_blocks_override": 160},
    "FLASH_ATTN 2": {"attention_backend": "FLASH_ATTN", "flash_attn_version": 2},
    "FLASH_ATTN 3": {"attention_backend": "FLASH_ATTN", "flash_attn_version": 3},
}  # fmt: skip
ON_CPUS = ("reference", "prefix cache")
PREFIX_SHARE = 0.3
"""Of the longest prompt: tokens that all share, for the prefix cache."""


def compare_bare_engines(setting: Setting) -> Result:
    """Each variant against the reference: first a whole batch, then the same prompts one after the other."""
    result = Result(
        skipped=["on CPUs there is no batch invariance: reported"] if setting.is_rehearsal else []
    )
    names = ON_CPUS if setting.is_rehearsal else tuple(VARIANTS)
    answers = {name: _generate(setting, name) for name in names}
    reference = answers["reference"]
    for name, found in answers.items():
        if found is None or reference is None:
            result.numbers[name] = "failed; see its log"
            continue
        result.numbers[name] = {
            way: sum(a != b for a, b in zip(texts, reference["batch"], strict=True))
            for way, texts in found.items()
        } | {"of": len(reference["batch"])}
    return result


def _generate(setting: Setting, name: str) -> dict[str, list[list[int]]] | None:
    stem = name.replace(" ", "-").lower()
    task, answers = setting.directory / f"7-{stem}.task.json", setting.directory / f"7-{stem}.json"
    answers.unlink(missing_ok=True)
    values = {"model": setting.small, "is_dummy": setting.is_dummy, "device": setting.device}
    numbers = {"prompts": min(64, setting.batch_prompts), "new_tokens": setting.new_tokens}
    numbers["longest"] = setting.longest_prompt
    task.write_text(json.dumps({**values, **numbers, "options": VARIANTS[name]}))
    command = [sys.executable, "-m", "benchmarks.gpu_steps.bare", str(task), str(answers)]
    run(command, setting.directory / "logs" / f"7-{stem}.log", setting.allow(240))
    return json.loads(answers.read_text()) if answers.exists() else None


def main() -> None:
    """Generate the task in the file of the first argument; the second gets the token ids."""
    task = json.loads(Path(sys.argv[1]).read_text())
    on_gpu = task["device"] == "cuda"
    os.environ["VLLM_BATCH_INVARIANT"] = "1" if on_gpu else "0"
    os.environ["VLLM_USE_FLASHINFER_SAMPLER"] = "0"
    from vllm import LLM, SamplingParams
    from vllm.inputs import tokens_input

    options = dict(task["options"])
    version = options.pop("flash_attn_version", None)
    if version is not None:
        options["attention_config"] = {
            "flash_attn_version": version,
            "backend": options.pop("attention_backend"),
        }
    if not on_gpu:
        options = {name: value for name, value in options.items() if name != "attention_backend"}
        options |= {"enforce_eager": True, "enable_chunked_prefill": False, "kv_cache_memory_bytes": 2**30}
    options.setdefault("enable_prefix_caching", False)
    if task["is_dummy"]:
        options["load_format"] = "dummy"
    llm = LLM(model=task["model"], max_model_len=1024, seed=0, **options)
    shared = [300 + n for n in range(int(task["longest"] * PREFIX_SHARE))]
    prompts, params = [], []
    for n in range(task["prompts"]):
        chance = random.Random(n)
        own = [chance.randrange(300, 30_000) for _ in range(chance.randrange(8, int(task["longest"] * 0.6)))]
        prompts.append(tokens_input([*shared, *own]))
        stops = list(STOP_TOKENS) if task["is_dummy"] else None
        params.append(SamplingParams(seed=n, max_tokens=task["new_tokens"], top_k=50, stop_token_ids=stops))
    # The second time the cache is warm, if there is one, and the batch is another.
    batch = [list(o.outputs[0].token_ids) for o in llm.generate(prompts, params, use_tqdm=False)]
    pairs = zip(prompts, params, strict=True)
    alone = [list(llm.generate([p], [s], use_tqdm=False)[0].outputs[0].token_ids) for p, s in pairs]
    Path(sys.argv[2]).write_text(json.dumps({"batch": batch, "again, one by one": alone}))


if __name__ == "__main__":
    main()
