"""The prefix cache of strict determinism in vLLM's own engine: what is cut alike has the same tokens."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import NEEDS_VLLM, make_environment

from synthia_batch.models.demo import prepare_demo_model

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(600),
    NEEDS_VLLM,
]
TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 2048,
    "initializer_range": 0.5,
}
PROGRAM = """
import json, random, sys
from pathlib import Path
from synthia_batch.core.types import Request
from synthia_batch.job.resolved import EngineSpec, ModelRef
from synthia_batch.job.sampling import Sampling
from synthia_batch.workers import load_engine
from synthia_batch.workers.engine import Placement
from synthia_batch.workers.environment import prepare_environment

blocks = int(sys.argv[2])
spec = EngineSpec(
    kind="vllm", device="cpu", dtype="float32", quantization=None, max_model_len=1024,
    model=ModelRef(name="tiny", path=Path(sys.argv[1]), repo_id=None, revision=None, trust_remote_code=False),
    sampling=Sampling(max_tokens=24), determinism="strict", tensor_parallel_size=1, pipeline_parallel_size=1,
    settings={"load_format": "dummy", "num_gpu_blocks_override": blocks},
)
prepare_environment(spec, Placement())
engine = load_engine(spec, Placement())
from synthia_batch.workers.vllm import prefix_cuts

class Misses(dict):
    total = 0
    def __setitem__(self, name, found):
        Misses.total += 1
        super().__setitem__(name, found)

from synthia_batch.workers.vllm import prefix_cache
prefix_cuts.MISSES = prefix_cache.MISSES = Misses()
words = [n % 40_000 + 100 for n in range(3000)]
requests = []
for n in range(24):
    # Openings of four lengths, and prompts of which three are asked.
    opening = words[n % 4 * 100 : n % 4 * 100 + 300 + 100 * (n % 4)]
    prompt = [*opening, *words[2000 + n // 3 * 50 : 2000 + n // 3 * 50 + 90]]
    requests.append(Request(ordinal=n, token_ids=prompt, seed=n, cuts=(len(opening), len(prompt) - 1)))

def play(batch, order):
    made, waiting, running = {}, order.sample(requests, len(requests)), 0
    before = engine.cached_prompt_tokens
    while len(made) < len(requests):
        while waiting and running < batch:
            engine.add(waiting.pop())
            running += 1
        for ended in engine.step():
            made[ended.ordinal] = ended.response
            running -= 1
    return [[made[n] for n in range(len(requests))], engine.cached_prompt_tokens - before]

passes = [play(batch, random.Random(batch)) for batch in (24, 5, 1)]
print("RESULT" + json.dumps({"passes": passes, "misses": Misses.total}))
"""


def play(path: Path, blocks: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), str(blocks)],
        env=make_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.partition("RESULT")[2])
    return found


def test_tokens_are_the_same_cold_warm_alone_and_where_prefixes_are_evicted(tmp_path: Path) -> None:
    model = tmp_path / "tiny"
    shutil.copytree(prepare_demo_model(), model)
    config = json.loads((model / "config.json").read_text())
    kept = {name: config[name] for name in ("vocab_size", "bos_token_id", "eos_token_id")}
    (model / "config.json").write_text(json.dumps({**TINY, **kept}))
    (model / "model.safetensors").unlink()

    roomy = play(model, 400)
    texts = roomy["passes"][0][0]
    assert len(set(texts)) > 20, "the seeds show"
    assert [one[0] for one in roomy["passes"]] == [texts] * 3
    taken = sum(((300 + 100 * (n % 4) + 90 - 1) // 32) * 32 for n in range(24))
    assert [one[1] for one in roomy["passes"]] == [taken] * 3, "to the last block, each time"
    assert roomy["misses"] == 0

    small = play(model, 50)
    assert [one[0] for one in small["passes"]] == [texts] * 3
    assert small["misses"] > 0, "otherwise nothing was evicted, and this shows nothing"
    assert [one[1] for one in small["passes"]] == [taken] * 3
