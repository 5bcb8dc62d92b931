"""What an engine on CPUs is spared at its start: torch's compiler, which it never asks for anything."""

import pytest
from conftest import NEEDS_VLLM_ON_CPUS, run_probe

pytestmark = [pytest.mark.engine, NEEDS_VLLM_ON_CPUS]
PROBE = """
import dataclasses
import sys
from synthia_batch.workers import import_vllm_engine
from synthia_batch.workers.environment import prepare_environment
from synthia_batch.workers.engine import Placement
from test_engine_environment import SPEC

spec = dataclasses.replace(SPEC, settings=dict(enforce_eager=sys.argv[1] == "eager"))
prepare_environment(spec, Placement())
import_vllm_engine(spec)

import torch
from torch._dynamo.utils import counters
from vllm import LLM
from vllm.v1.sample import sampler

# Of its functions one that vLLM compiles whatever `enforce_eager` says.
torch.manual_seed(0)
equal, ranks = True, set()
for rows in (1, 2, 27, 128):
    logprobs = torch.randn(rows, 49152).log_softmax(-1)
    logprobs[:, 7] = logprobs[:, 9]  # two that are as probable as each other
    for token in (0, 9, 49151):
        values = logprobs.gather(-1, torch.full((rows, 1), token))
        counted = sampler.batched_count_greater_than(logprobs, values)
        equal &= counted.tolist() == (logprobs >= values).sum(-1).tolist()
        ranks |= set(counted.tolist())
has_inductor = "torch._inductor.lowering" in sys.modules
print("inductor", has_inductor, "compiled", counters["stats"]["unique_graphs"] > 0)
print("equal", equal, "distinct", len(ranks) > 100)
"""


@pytest.mark.parametrize("how", ["eager", "compiled"])
def test_only_an_engine_that_compiles_has_a_compiler(how: str) -> None:
    compiles = how == "compiled"
    assert run_probe(PROBE, how)[-2:] == [
        f"inductor {compiles} compiled {compiles}",
        "equal True distinct True",
    ]
