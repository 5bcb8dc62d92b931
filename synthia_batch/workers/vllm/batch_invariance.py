"""Makes the arithmetic of vLLM's CPU engine independent of the batch size.

Why the result of a row does not depend on the others, layer by layer, on one thread:

- Unquantized linear layers: a matrix product sums each element separately, in an order that the kernel
  chooses by the shapes. With AVX512 the order is the same for any number of rows from MIN_GEMM_ROWS, so
  smaller products are padded. With AMX the order changes at several numbers of rows, different ones for
  each layer (observed with oneDNN 3.13): see `InvariantProducts`.
- 4-bit layers (AWQ): vLLM's kernel uses one path for any number of rows, padded or not.
- Attention: each sequence separately. What would split it differently is disabled elsewhere: threads
  (environment), chunks of a prompt and cached prefixes (arguments), preemption (engine).
- Everything else, sampling included, is computed row by row.

tests/engine/test_real_kernels.py tests the first two for 1 to 2,048 rows, benchmarks/determinism.py the
whole engine for batches of 1 to 256.
"""

import functools
from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import torch
import vllm._custom_ops as vllm_ops
from vllm.model_executor.layers import utils as vllm_layers

MIN_GEMM_ROWS = 16
"""Below a few rows the CPU's GEMM uses another path, which rounds differently."""
AMX_ROWS = range(MIN_GEMM_ROWS, 257, 16)
"""The numbers of rows tried with AMX. Larger products are split into pieces of the largest."""
_DRAWN_OUTPUTS = 1024
"""Random rows of weights drawn to try a shape; larger layers repeat them."""


def make_gemms_batch_invariant() -> None:
    """Patch vLLM's unquantized CPU GEMMs so that a row has the same bits in any batch; see the module.

    AttributeError if vLLM has moved the functions: no engine is better than a false guarantee.
    """
    dispatch = vllm_layers.dispatch_cpu_unquantized_gemm
    if getattr(dispatch, "is_batch_invariant", False):
        return

    def dispatch_padded(layer: torch.nn.Module, remove_weight: bool) -> None:
        dispatch(layer, remove_weight)
        linear = getattr(layer, "cpu_linear", None)
        if linear is not None:
            layer.cpu_linear = _pad_rows(linear)  # type: ignore[assignment]

    dispatch_padded.is_batch_invariant = True  # type: ignore[attr-defined]
    vllm_layers.dispatch_cpu_unquantized_gemm = dispatch_padded
    if torch.cpu._is_amx_tile_supported():
        vllm_ops.onednn_mm  # noqa: B018 - must exist to be replaced
        vllm_ops.onednn_mm = InvariantProducts().multiply


def _pad_rows(linear: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def padded(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        rows = x.numel() // x.shape[-1]
        if rows >= MIN_GEMM_ROWS:
            return linear(x, weight, bias)
        flat = torch.nn.functional.pad(x.reshape(rows, x.shape[-1]), (0, 0, 0, MIN_GEMM_ROWS - rows))
        out = linear(flat, weight, bias)[:rows]
        return out.reshape(*x.shape[:-1], out.shape[-1])

    return padded


class InvariantProducts:
    """oneDNN's matrix products on a CPU with AMX, limited to the numbers of rows that
    `find_invariant_rows` returns for the layer's shape: other products are padded to the next number or
    split into pieces of the largest.
    """

    def __init__(self) -> None:
        self._find_rows = functools.cache(find_invariant_rows)
        self._padded: dict[tuple[int, torch.dtype], torch.Tensor] = {}

    def multiply(
        self, dnnl_handler: vllm_ops.CPUDNNLGEMMHandler, x: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Replaces vLLM's function of the same arguments: (..., inputs) to (..., outputs)."""
        sizes = self._find_rows(dnnl_handler.n, dnnl_handler.k, x.dtype)
        flat = x.reshape(-1, dnnl_handler.k)
        rows, most = len(flat), sizes[-1]
        whole = rows // most * most
        rest = rows - whole
        room = whole + (sizes[bisect_left(sizes, rest)] if rest else 0)
        out = torch.empty((room, dnnl_handler.n), dtype=x.dtype)
        for start in range(0, whole, most):
            _multiply(dnnl_handler, out[start : start + most], flat[start : start + most], bias)
        if rest:
            last = flat[whole:] if room == rows else self._pad(flat[whole:], room - whole)
            _multiply(dnnl_handler, out[whole:], last, bias)
        return out[:rows].view(*x.shape[:-1], dnnl_handler.n)

    def _pad(self, x: torch.Tensor, rows: int) -> torch.Tensor:
        """Return `x` padded to `rows` rows. The padding keeps old values, which do not matter."""
        key = (x.shape[1], x.dtype)
        if key not in self._padded:
            self._padded[key] = torch.zeros(AMX_ROWS[-1], x.shape[1], dtype=x.dtype)
        self._padded[key][: len(x)] = x
        return self._padded[key][:rows]


def find_invariant_rows(outputs: int, inputs: int, dtype: torch.dtype) -> tuple[int, ...]:
    """Return those of AMX_ROWS at which oneDNN sums as at the largest, for weights (outputs, inputs).

    The weights and inputs tried have products that cancel: only rounding remains, so each element reveals
    the order of its sum. Takes as long as ten products of the largest number, about 0.6 s for all shapes of
    a small model, and meanwhile twice the memory of the layer's weights.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(rows: int) -> torch.Tensor:
        return torch.randn(rows, inputs // 2, generator=generator, dtype=torch.float32).to(dtype)

    half = draw(min(outputs, _DRAWN_OUTPUTS)).repeat(-(-outputs // _DRAWN_OUTPUTS), 1)[:outputs]
    weights = torch.cat([half, -half, torch.zeros(outputs, inputs % 2, dtype=dtype)], dim=1)
    half = draw(AMX_ROWS[-1])
    x = torch.cat([half, half, torch.zeros(len(half), inputs % 2, dtype=dtype)], dim=1)
    handler = vllm_ops.create_onednn_mm(weights.t(), len(AMX_ROWS))

    def multiply(rows: int) -> torch.Tensor:
        out = torch.empty((rows, outputs), dtype=dtype)
        _multiply(handler, out, x[:rows], None)
        return out

    wanted = multiply(AMX_ROWS[-1])
    return tuple(rows for rows in AMX_ROWS if torch.equal(multiply(rows), wanted[:rows]))


def _multiply(
    handler: vllm_ops.CPUDNNLGEMMHandler, out: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None
) -> None:
    product: Any = torch.ops._C.onednn_mm
    product(out, x, bias, handler.handler_tensor)
