"""vLLM's CPU kernels as strict determinism uses them: a row comes out the same among any number of others."""

import pytest
from conftest import NEEDS_VLLM_ON_CPUS, run_probe

pytestmark = [pytest.mark.engine, NEEDS_VLLM_ON_CPUS]
ROWS_PROBE = """
import sys
import torch
import vllm._custom_ops as ops
import vllm.platforms
from synthia_batch.workers.vllm.batch_invariance import make_gemms_batch_invariant
from vllm.model_executor.kernels.linear.mixed_precision.cpu import _get_isa_hint
from vllm.model_executor.layers import utils

ROWS = (1, 2, 3, 5, 8, 15, 16, 17, 31, 33, 64, 100, 129, 170, 181, 256, 257, 300, 500, 2048)
# Inputs and outputs of three of SmolLM2's layers and of one of Qwen2.5's.
SHAPES = ((576, 960), (576, 576), (1536, 576), (4864, 896))
torch.manual_seed(0)
if sys.argv[1] == "without AMX":
    torch.cpu._is_amx_tile_supported = lambda: False
make_gemms_batch_invariant()


def find_different(multiply, x):
    wanted = multiply(x)
    return [rows for rows in ROWS if not torch.equal(multiply(x[:rows].contiguous()), wanted[:rows])]


def draw_cancelling(rows, inputs, dtype, sign):
    # With the other sign in the other factor sums come to nothing but rounding, which shows their order.
    half = torch.randn(rows, inputs // 2).to(dtype)
    return torch.cat([half, sign * half], dim=1)


for dtype in (torch.bfloat16, torch.float16, torch.float32):
    for inputs, outputs in SHAPES:
        layer = torch.nn.Linear(inputs, outputs, bias=False, dtype=dtype)
        for sign in (1, -1):
            weight = draw_cancelling(outputs, inputs, dtype, -1)
            layer.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
            utils.dispatch_cpu_unquantized_gemm(layer, remove_weight=False)
            different = find_different(
                lambda x: layer.cpu_linear(x, weight, None), draw_cancelling(max(ROWS), inputs, dtype, sign)
            )
            print("unquantized", dtype, inputs, outputs, sign, different)

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
        x = torch.randn(max(ROWS), inputs).to(dtype)
        print("4 bits", dtype, inputs, outputs, find_different(multiply, x))
"""


@pytest.mark.parametrize(
    ("how", "environment"),
    [("as it is", {}), ("without AMX", {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"})],
)
def test_a_row_comes_out_the_same_among_any_number_of_others(how: str, environment: dict[str, str]) -> None:
    printed = run_probe(ROWS_PROBE, how, OMP_NUM_THREADS="1", **environment)
    lines = [line for line in printed if line.startswith(("unquantized", "4 bits"))]
    assert len(lines) == 3 * 4 * 2 + 2 * 4
    assert [line for line in lines if not line.endswith("[]")] == []


SIZES_PROBE = """
import torch
import vllm._custom_ops as ops
import vllm.platforms
from synthia_batch.workers.vllm import batch_invariance as vllm_batch_invariance

SIZES = (48, 160, 256)
INPUTS, OUTPUTS = 64, 96
torch.manual_seed(0)
multiply, seen = vllm_batch_invariance._multiply, set()


def multiply_seen(handler, out, x, bias):
    assert len(out) == len(x)
    seen.add(len(x))
    multiply(handler, out, x, bias)


vllm_batch_invariance._multiply = multiply_seen
vllm_batch_invariance.find_invariant_rows = lambda *shape: SIZES
products = vllm_batch_invariance.InvariantProducts()
weight, bias, x = torch.randn(OUTPUTS, INPUTS), torch.randn(OUTPUTS), torch.randn(1000, INPUTS)
handler = ops.create_onednn_mm(weight.t(), 8)
for rows in (1, 47, 48, 49, 160, 161, 255, 256, 257, 300, 512, 600, 1000):
    seen.clear()
    found = products.multiply(handler, x[:rows], bias)
    wanted = torch.nn.functional.linear(x[:rows], weight, bias)
    print("rows", rows, sorted(seen), torch.allclose(found, wanted, atol=1e-4))
print("shape", list(products.multiply(handler, x[:6].view(2, 3, INPUTS), None).shape))
print("none", list(products.multiply(handler, x[:0], None).shape))
"""


def test_products_are_of_the_numbers_of_rows_that_are_alike_only() -> None:
    printed = run_probe(SIZES_PROBE, OMP_NUM_THREADS="1")
    assert [line for line in printed if line.startswith("rows")] == [
        "rows 1 [48] True",
        "rows 47 [48] True",
        "rows 48 [48] True",
        "rows 49 [160] True",
        "rows 160 [160] True",
        "rows 161 [256] True",
        "rows 255 [256] True",
        "rows 256 [256] True",
        "rows 257 [48, 256] True",
        "rows 300 [48, 256] True",
        "rows 512 [256] True",
        "rows 600 [160, 256] True",
        "rows 1000 [256] True",
    ]
    assert "shape [2, 3, 96]" in printed
    assert "none [0, 96]" in printed


ALIKE_PROBE = """
import torch
import vllm._custom_ops as ops
import vllm.platforms
from synthia_batch.workers.vllm.batch_invariance import AMX_ROWS, find_invariant_rows

if torch.cpu._is_amx_tile_supported():
    inputs, outputs = 576, 960
    alike = find_invariant_rows(outputs, inputs, torch.bfloat16)
    # The same products, of ordinary numbers this time.
    torch.manual_seed(0)
    weight, x = torch.randn(outputs, inputs).bfloat16(), torch.randn(AMX_ROWS[-1], inputs).bfloat16()
    handler = ops.create_onednn_mm(weight.t(), 32)
    wanted = ops.onednn_mm(handler, x, None)
    same = {
        rows: torch.equal(torch.cat([ops.onednn_mm(handler, piece, None) for piece in x.split(rows)]), wanted)
        for rows in (16, 32, 64, 128)
    }
    print("as found", same == {rows: rows in alike for rows in same})
"""


def test_with_amx_what_is_found_alike_is_so_for_ordinary_numbers() -> None:
    printed = [
        line for line in run_probe(ALIKE_PROBE, OMP_NUM_THREADS="1") if line.endswith(("True", "False"))
    ]
    if not printed:
        pytest.skip("this CPU has no AMX")
    assert printed == ["as found True"]
