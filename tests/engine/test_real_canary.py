"""The canaries, asked of a real engine: one that shows its batch is refused before it makes a sample."""

import pytest
from conftest import NEEDS_VLLM_ON_CPUS, run_probe

from synthia_batch.models.demo import prepare_demo_model

pytestmark = [pytest.mark.engine, NEEDS_VLLM_ON_CPUS]
PROBE = """
import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace
from synthia_batch.workers.canary import run_canaries
from synthia_batch.runner.directory.canary_record import make_canaries
from synthia_batch.workers import load_engine
from synthia_batch.workers.environment import prepare_environment
from synthia_batch.workers.engine import Placement
from synthia_batch.errors import DeterminismBroken
from test_engine_environment import SPEC

model = dataclasses.replace(SPEC.model, path=Path(sys.argv[2]))
spec = dataclasses.replace(SPEC, model=model, max_model_len=512)
if sys.argv[1] == "as vLLM has it":
    prepare_environment(spec, Placement())  # vLLM is imported here, not by load_engine
    from synthia_batch.workers.vllm import engine as vllm_engine

    vllm_engine.make_gemms_batch_invariant = lambda: None
engine = load_engine(spec, Placement())
canaries = make_canaries(SimpleNamespace(encode=lambda text: list(range(1000, 1300))), 512)
try:
    run_canaries(engine, canaries)
    print("passed")
except DeterminismBroken as exc:
    print("refused", "alone and in a batch" in str(exc))
"""


@pytest.mark.parametrize(("how", "said"), [("as vLLM has it", "refused True"), ("batch invariant", "passed")])
def test_an_engine_that_shows_its_batch_is_refused(how: str, said: str) -> None:
    assert run_probe(PROBE, how, str(prepare_demo_model()))[-1] == said
