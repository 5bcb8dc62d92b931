"""Keeps LoRA adapters off the rows of a CPU batch that name none."""

from typing import Any

import torch
from vllm.lora.ops.torch_ops import lora_ops
from vllm.lora.punica_wrapper import punica_cpu


def spare_rows_without_adapter() -> None:
    """Make vLLM's CPU kernels leave rows alone that no adapter is for.

    Such a row has the index -1, with which vLLM 0.32.0 takes the adapter in the last place: in a batch
    of both kinds it answers as if it had named that one (vllm#48421 and #49656, both open). What a row
    is shrunk to is zeroed here, and nothing is then added to it. Raises AttributeError where vLLM has
    moved the function: better no engine than another adapter's answers.
    """
    shrink = lora_ops.bgmv_shrink
    if getattr(shrink, "spares_rows", False):
        return

    def shrink_sparing(
        inputs: torch.Tensor,
        weights: torch.Tensor,
        output: torch.Tensor,
        indices: torch.Tensor,
        scaling: float = 1.0,
    ) -> None:
        shrink(inputs, weights, output, indices, scaling)
        output.masked_fill_((indices < 0).unsqueeze(-1), 0.0)

    marked: Any = shrink_sparing
    marked.spares_rows = True
    # Prefill finds it in its own module, by way of sgmv_shrink; decode where it was imported.
    lora_ops.bgmv_shrink = marked
    punica_cpu.bgmv_shrink = marked  # type: ignore[attr-defined]
