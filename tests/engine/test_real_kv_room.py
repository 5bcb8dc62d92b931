"""No running sample is preempted in strict determinism, whatever kinds of KV cache a model has."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import NEEDS_VLLM, make_environment

from synthia_batch.models.demo import prepare_demo_model

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(600),
    NEEDS_VLLM,
]
SLIDING_WINDOWS = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "sliding_window": 64,
    "layer_types": [*["sliding_attention"] * 5, "full_attention"],
    "query_pre_attn_scalar": 64,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
    "hidden_activation": "gelu_pytorch_tanh",
}
"""A Gemma 3 with one layer in six that sees everything, as large as a test may be."""
PROGRAM = """
import sys
from pathlib import Path
from synthia_batch.workers import load_engine
from synthia_batch.workers.engine import Placement
from synthia_batch.job.resolved import EngineSpec, ModelRef
from synthia_batch.job.sampling import Sampling
from synthia_batch.core.types import Request

path = Path(sys.argv[1])
settings = {"load_format": "dummy", "kv_cache_memory_bytes": 12_000_000}
if sys.argv[2] == "several":
    settings["disable_hybrid_kv_cache_manager"] = False
model = ModelRef(name="tiny", path=path, repo_id=None, revision=None, trust_remote_code=False)
engine = load_engine(
    EngineSpec(
        kind="vllm", model=model, device="cpu", dtype="bfloat16", quantization=None, max_model_len=512,
        sampling=Sampling(ignore_eos=True, min_tokens=120, max_tokens=120), determinism="strict",
        tensor_parallel_size=1, pipeline_parallel_size=1, settings=settings,
    ),
    Placement(),
)
scheduler = engine._engine.engine_core.engine_core.scheduler
preempted, preempt = [], scheduler._preempt_request
scheduler._preempt_request = lambda *given, **named: preempted.append(1) or preempt(*given, **named)
for number in range(40):
    tokens = tuple(1000 + number + place for place in range(100))
    engine.add(Request(ordinal=number, token_ids=tokens, seed=number))
ended, largest = 0, 0
while ended < 40:
    ended += len(engine.step())
    largest = max(largest, len(scheduler.running))
print("made", ended, "preempted", len(preempted), "waited", largest < 40)
"""


def load_sliding(directory: Path, caches: str) -> subprocess.CompletedProcess[str]:
    demo = prepare_demo_model()
    for file in demo.glob("*token*"):
        shutil.copy(file, directory / file.name)
    vocabulary = json.loads((demo / "config.json").read_text())["vocab_size"]
    (directory / "config.json").write_text(json.dumps({**SLIDING_WINDOWS, "vocab_size": vocabulary}))
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(directory), caches],
        env=make_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_model_with_sliding_windows_makes_what_its_cache_holds_and_preempts_none(tmp_path: Path) -> None:
    done = load_sliding(tmp_path, "one")
    assert done.stdout.splitlines()[-1:] == ["made 40 preempted 0 waited True"], done.stderr


def test_caches_that_are_not_counted_are_refused(tmp_path: Path) -> None:
    done = load_sliding(tmp_path, "several")
    assert done.returncode != 0
    assert "several kinds of KV cache for tiny" in done.stderr
