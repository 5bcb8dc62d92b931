"""Takes the size of a batch out of the arithmetic of vLLM's CPU engine.

What makes a row's result independent of the others, layer by layer, on one thread:

- Unquantized linear layers: a matrix product adds up each of its elements by itself, in an order that
  the kernel chooses by the shapes. With AVX512 it chooses the same one for any number of rows from
  MIN_GEMM_ROWS on, so none ever sees fewer. With AMX the order changes with the number of rows again and
  again, at other numbers for every layer (seen with oneDNN 3.13): see `AlikeProducts`.
- 4-bit layers (AWQ): vLLM's kernel takes one path for any number of rows, padded or not.
- Attention: each sequence by itself. What would cut it otherwise is closed off elsewhere: threads
  (environment), chunks of a prompt and cached prefixes (vllm_arguments), preemption (vllm_engine).
- Everything else, sampling included, is row by row.

tests/engine/test_real_kernels.py holds the first two for 1 to 2,048 rows; benchmarks/determinism.py the
whole for batches of 1 to 256.
"""

import functools
from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import torch
import vllm._custom_ops as vllm_ops
from vllm.model_executor.layers import utils as vllm_layers

MIN_GEMM_ROWS = 16
"""Below a few rows the CPU's GEMM takes another path, which rounds differently."""
AMX_ROWS = range(MIN_GEMM_ROWS, 257, 16)
"""The numbers of rows that are tried with AMX. More are taken in pieces of the largest."""
_DRAWN_OUTPUTS = 1024
"""So many rows of weights are drawn where a shape is tried; a layer with more has them again and again."""


def make_gemms_batch_invariant() -> None:
    """Have vLLM's unquantized CPU GEMMs give a row the same bits among any others; see the module.

    Raises AttributeError where vLLM has moved the functions: better no engine than a wrong claim.
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
        vllm_ops.onednn_mm  # noqa: B018 - must be there to be replaced
        vllm_ops.onednn_mm = AlikeProducts().multiply


def _pad_rows(linear: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def padded(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        rows = x.numel() // x.shape[-1]
        if rows >= MIN_GEMM_ROWS:
            return linear(x, weight, bias)
        flat = torch.nn.functional.pad(x.reshape(rows, x.shape[-1]), (0, 0, 0, MIN_GEMM_ROWS - rows))
        out = linear(flat, weight, bias)[:rows]
        return out.reshape(*x.shape[:-1], out.shape[-1])

    return padded


class AlikeProducts:
    """oneDNN's matrix products where the CPU has AMX, of those numbers of rows only that `find_alike`
    found for the layer's shape: a product of another number is padded to the next, one of more than
    the largest is made in pieces.
    """

    def __init__(self) -> None:
        self._find_alike = functools.cache(find_alike)
        self._padded: dict[tuple[int, torch.dtype], torch.Tensor] = {}

    def multiply(
        self, dnnl_handler: vllm_ops.CPUDNNLGEMMHandler, x: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Do as vLLM's function of the same arguments: `x` is (..., inputs), what returns (..., outputs)."""
        sizes = self._find_alike(dnnl_handler.n, dnnl_handler.k, x.dtype)
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
        """Return `x` with `rows` rows. What stands in the others is left of before and does not show."""
        key = (x.shape[1], x.dtype)
        if key not in self._padded:
            self._padded[key] = torch.zeros(AMX_ROWS[-1], x.shape[1], dtype=x.dtype)
        self._padded[key][: len(x)] = x
        return self._padded[key][:rows]


def find_alike(outputs: int, inputs: int, dtype: torch.dtype) -> tuple[int, ...]:
    """Return those of AMX_ROWS at which oneDNN adds up as at the largest, for weights (outputs, inputs).

    Tried with weights and inputs whose products cancel: what is left is rounding, so that every element
    shows in which order it was added up. Takes as long as ten products of the largest number, some 0.6 s
    for all shapes of a small model, and for that time the memory of the layer's weights twice.
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
