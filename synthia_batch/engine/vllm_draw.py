"""Draws tokens in vLLM's CPU engine among those few that top-k and top-p leave, as vLLM would draw them.

vLLM 0.32.0, where it has no Triton for CPUs, writes -inf over all others, and its kernel, which takes the
token whose logit and noise come to most, goes through the whole vocabulary once more. The noise depends on
the row's seed and the token alone, so that of the few it can be had by itself. The same tokens are drawn,
unless two come to the same in some 16 digits, or a top-p leaves others than vLLM's would: see
vllm_top_tokens. Rows that have neither are the kernel's as they are; vLLM sorts them where others have a
top-p.

Figures: benchmarks/results/2026-11-22-top-tokens.md.
"""

from collections.abc import Mapping

import torch
from vllm.config.model import PROCESSED_LOGPROBS_MODES
from vllm.v1.sample.ops import topk_topp_sampler as vllm_sampler
from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

from synthia_batch.engine.vllm_top_tokens import LEAST_VOCABULARY, TopTokens, find_top_tokens

# SplitMix64 (Steele, Lea, Flood 2014), its constants as signed numbers.
_STEP = 0x9E3779B97F4A7C15 - 2**64
_FACTORS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)


def draw_among_few() -> None:
    """Have vLLM's CPU sampler draw as this module does.

    Raises AttributeError where vLLM has moved the function, so that a new release is looked at first.
    """
    draw_among_all = TopKTopPSampler.forward_cpu
    if getattr(draw_among_all, "draws_among_few", False):
        return

    def forward(
        sampler: TopKTopPSampler,
        logits: torch.Tensor,
        generators: dict[int, torch.Generator],
        k: torch.Tensor | None,
        p: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if can_draw_among_few(sampler, logits, k, p):
            return draw_tokens(logits, draw_seeds(len(logits), generators), k, p), None
        return draw_among_all(sampler, logits, generators, k, p)

    forward.draws_among_few = True  # type: ignore[attr-defined]
    TopKTopPSampler.forward_cpu = forward  # type: ignore[assignment]


def can_draw_among_few(
    sampler: TopKTopPSampler, logits: torch.Tensor, k: torch.Tensor | None, p: torch.Tensor | None
) -> bool:
    """Whether there may be few to draw among, and nobody asks for what is left of `logits`."""
    rows, vocabulary = logits.shape
    asks_for_more = sampler.use_fp64_gumbel or sampler.logprobs_mode in PROCESSED_LOGPROBS_MODES
    is_limited = k is not None or p is not None
    return is_limited and not asks_for_more and rows > 0 and vocabulary >= LEAST_VOCABULARY


def draw_seeds(rows: int, generators: Mapping[int, torch.Generator]) -> torch.Tensor:
    """Return a seed for each row, (rows,), from its generator if it has one: as vLLM draws them."""
    seeds = torch.randint(0, 2**31, (rows,))
    for row, generator in generators.items():
        seeds[row] = torch.randint(0, 2**31, (1,), generator=generator)
    return seeds


def draw_tokens(
    logits: torch.Tensor, seeds: torch.Tensor, k: torch.Tensor | None, p: torch.Tensor | None
) -> torch.Tensor:
    """Return a token for each row of `logits`, (rows, vocabulary), float32."""
    top = find_top_tokens(logits, k, p)
    best = score_tokens(top, seeds).argmax(1, keepdim=True)
    drawn = top.tokens.gather(1, best).squeeze(1)
    free, others = top.is_free, ~(top.is_free | top.is_found)
    if free.any():
        drawn[free] = torch.ops._C.fused_gumbel_argmax(logits[free], seeds[free])
    if others.any():
        k, p = (None if limit is None else limit[others] for limit in (k, p))
        masked = vllm_sampler.apply_top_k_top_p(logits[others], k, p)
        drawn[others] = torch.ops._C.fused_gumbel_argmax(masked, seeds[others])
    return drawn


def score_tokens(top: TopTokens, seeds: torch.Tensor) -> torch.Tensor:
    """Return the sum of logit and Gumbel noise of each token: (rows, columns), float64."""
    bits = _scramble(_scramble(seeds).unsqueeze(1) + (top.tokens + 1) * _STEP)
    uniform = (_shift(bits, 11).double() + 0.5) * 2.0**-53
    return top.values.double() - (-uniform.log()).log()


def _scramble(bits: torch.Tensor) -> torch.Tensor:
    bits = (bits ^ _shift(bits, 30)) * _FACTORS[0]
    bits = (bits ^ _shift(bits, 27)) * _FACTORS[1]
    return bits ^ _shift(bits, 31)


def _shift(bits: torch.Tensor, places: int) -> torch.Tensor:
    """Shift 64 bits to the right as if they had no sign."""
    return (bits >> places) & ((1 << (64 - places)) - 1)
