"""Takes the size of a batch out of the arithmetic of vLLM's CPU engine."""

from collections.abc import Callable

import torch
from vllm.model_executor.layers import utils as vllm_layers

MIN_GEMM_ROWS = 16
"""Below a few rows the CPU's GEMM takes another path, which rounds differently."""


def pad_small_gemms() -> None:
    """Make vLLM's unquantized CPU GEMM see at least MIN_GEMM_ROWS rows.

    With that, one thread and no prefix cache, a row's tokens are the same in a batch of any size.
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
