"""Takes the size of a batch out of the arithmetic of vLLM's CPU engine.

What makes a row's result independent of the others, layer by layer, on one thread:

- Unquantized linear layers: a matrix product adds up each of its elements by itself, in an order that
  the kernel chooses by the shapes. From MIN_GEMM_ROWS rows on it chooses the same one for any number of
  rows; for fewer it may take another path, so none ever sees fewer. What is padded is cut off again.
- 4-bit layers (AWQ): vLLM's kernel takes one path for any number of rows, padded or not.
- Attention: each sequence by itself. What would cut it otherwise is closed off elsewhere: threads
  (environment), chunks of a prompt and cached prefixes (vllm_arguments), preemption (vllm_engine).
- Everything else, sampling included, is row by row.

tests/engine/test_real_kernels.py holds the first two for 1 to 2,048 rows; benchmarks/determinism.py the
whole for batches of 1 to 256.
"""

from collections.abc import Callable

import torch
from vllm.model_executor.layers import utils as vllm_layers

MIN_GEMM_ROWS = 16
"""Below a few rows the CPU's GEMM takes another path, which rounds differently."""


def pad_small_gemms() -> None:
    """Make vLLM's unquantized CPU GEMM see at least MIN_GEMM_ROWS rows; see the module for what that does.

    Raises AttributeError where vLLM has moved the function: better no engine than a wrong claim.
    """
    dispatch = vllm_layers.dispatch_cpu_unquantized_gemm
    if getattr(dispatch, "pads_small_gemms", False):
        return

    def dispatch_padded(layer: torch.nn.Module, remove_weight: bool) -> None:
        dispatch(layer, remove_weight)
        linear = getattr(layer, "cpu_linear", None)
        if linear is not None:
            layer.cpu_linear = _pad_rows(linear)  # type: ignore[assignment]

    dispatch_padded.pads_small_gemms = True  # type: ignore[attr-defined]
    vllm_layers.dispatch_cpu_unquantized_gemm = dispatch_padded


def _pad_rows(linear: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def padded(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        rows = x.numel() // x.shape[-1]
        if rows >= MIN_GEMM_ROWS:
            return linear(x, weight, bias)
        flat = torch.nn.functional.pad(x.reshape(rows, x.shape[-1]), (0, 0, 0, MIN_GEMM_ROWS - rows))
        out = linear(flat, weight, bias)[:rows]
        return out.reshape(*x.shape[:-1], out.shape[-1])

    return padded
