"""Keeps a compiler out of an engine's first step on CPUs."""

import torch
from vllm.v1.sample import sampler


def count_ranks_uncompiled() -> None:
    """Have vLLM count the rank of a token, which comes with its probability, without compiling that first.

    vLLM 0.32.0 compiles this one comparison whatever `enforce_eager` says, when a probability is first
    asked for: the canaries do, so every start of an engine waited for a C++ compiler. Ranks are whole
    numbers, the same either way; a batch's comparison is a few MB. Raises AttributeError where vLLM has
    moved the function, which is then to be looked at again.
    """
    _ = sampler.batched_count_greater_than  # type: ignore[attr-defined]
    sampler.batched_count_greater_than = _count_at_least  # type: ignore[attr-defined]


def _count_at_least(x: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return how many of a row are no less than its value: (n, tokens), (n, 1) -> (n)."""
    return (x >= values).sum(-1)
