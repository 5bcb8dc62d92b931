"""A faster sampler for vLLM's CPU engine: draws among the few tokens that top-k and top-p leave.

vLLM 0.32.0 sorts all logits of a row for a top-p, which on a CPU takes longer than the rest of the step, and
scans them all with a heap for a top-k. Without Triton for CPUs it then masks the others with -inf, and its
kernel, which chooses the token with the highest sum of logit and noise, scans the whole vocabulary again.

Here the vocabulary is split into blocks: the highest logit of each shows which few blocks may contain a
row's highest tokens, and only these are searched. The noise depends only on the row's seed and the token, so
it is computed for these few alone.

A top-k keeps what vLLM keeps, ties included. A top-p, whose probabilities are summed in another order, may
differ for a token within a rounding error of the limit, and for ties at the limit: vLLM's sort leaves open
which of them stay. Otherwise the same tokens are drawn, unless two sums agree to about 16 digits. A row never
depends on the others. Rows without top-k and top-p go to vLLM's kernel unchanged; vLLM sorts them if others
have a top-p.

Figures: benchmarks/results/2026-11-22-top-tokens.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from vllm.config.model import PROCESSED_LOGPROBS_MODES
from vllm.v1.sample.ops import topk_topp_sampler as vllm_sampler
from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

BLOCK = 64
"""Tokens in a block. Smaller blocks slow down the first pass, larger ones the second."""
MAX_TOP_TOKENS = 256
"""Largest top-k searched for; a top-p is searched among so many of a row's highest tokens, plus ties."""
MAX_BLOCKS, MAX_CANDIDATES = 2 * MAX_TOP_TOKENS, 16 * MAX_TOP_TOKENS
"""A row with more blocks to search, or more tokens in them, is left to vLLM: mostly equal logits, which would
take memory in all rows."""
MIN_VOCABULARY = MAX_TOP_TOKENS * BLOCK
"""Smaller vocabularies have fewer blocks than the tokens searched for."""
# SplitMix64 (Steele, Lea, Flood 2014), its constants as signed numbers.
_STEP = 0x9E3779B97F4A7C15 - 2**64
_FACTORS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)


@dataclass(frozen=True, slots=True, kw_only=True)
class TopTokens:
    """The remaining logits of each row, float32, and their tokens, both (rows, columns).

    Excluded logits are -inf. Only rows with `is_found` (rows,) are valid. Rows with `is_free` (rows,) have
    neither top-k nor top-p.
    """

    values: torch.Tensor
    tokens: torch.Tensor
    is_found: torch.Tensor
    is_free: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Highest:
    """The highest logits of each row, the highest first, and their tokens: both (rows, columns).

    Columns after a row's last logit are -inf. Among equal logits the higher token comes first.
    """

    values: torch.Tensor
    tokens: torch.Tensor


def patch_sampler() -> None:
    """Make vLLM's CPU sampler draw as this module does.

    AttributeError if vLLM has moved the function, so that a new release is reviewed first.
    """
    draw_from_all = TopKTopPSampler.forward_cpu
    if getattr(draw_from_all, "is_patched", False):
        return

    def forward(
        sampler: TopKTopPSampler,
        logits: torch.Tensor,
        generators: dict[int, torch.Generator],
        k: torch.Tensor | None,
        p: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if can_draw_from_top(sampler, logits, k, p):
            return draw_tokens(logits, draw_seeds(len(logits), generators), k, p), None
        return draw_from_all(sampler, logits, generators, k, p)

    forward.is_patched = True  # type: ignore[attr-defined]
    TopKTopPSampler.forward_cpu = forward  # type: ignore[assignment]


def can_draw_from_top(
    sampler: TopKTopPSampler, logits: torch.Tensor, k: torch.Tensor | None, p: torch.Tensor | None
) -> bool:
    """Whether top-k or top-p may leave few tokens, and no caller needs the masked `logits`."""
    rows, vocabulary = logits.shape
    needs_logits = sampler.use_fp64_gumbel or sampler.logprobs_mode in PROCESSED_LOGPROBS_MODES
    is_limited = k is not None or p is not None
    return is_limited and not needs_logits and rows > 0 and vocabulary >= MIN_VOCABULARY


def draw_seeds(rows: int, generators: Mapping[int, torch.Generator]) -> torch.Tensor:
    """Return a seed for each row, (rows,), from its generator if it has one, as vLLM does."""
    seeds = torch.randint(0, 2**31, (rows,))
    for row, generator in generators.items():
        seeds[row] = torch.randint(0, 2**31, (1,), generator=generator)
    return seeds


def draw_tokens(
    logits: torch.Tensor, seeds: torch.Tensor, k: torch.Tensor | None, p: torch.Tensor | None
) -> torch.Tensor:
    """Return the token drawn for each row of `logits`, (rows, vocabulary), float32."""
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


def find_top_tokens(logits: torch.Tensor, k: torch.Tensor | None, p: torch.Tensor | None) -> TopTokens:
    """Return the tokens that top-k and top-p leave of `logits`, (rows, >= MIN_VOCABULARY), float32.

    `k` and `p` are (rows,); a row without a top-k has the size of the vocabulary, one without a top-p 1.0.
    """
    rows, vocabulary = logits.shape
    k = torch.full((rows,), vocabulary) if k is None else k.long()
    p = torch.ones(rows) if p is None else p
    has_top_k = k <= MAX_TOP_TOKENS
    has_top_p = (k == vocabulary) & (p < 1.0)
    highest = find_highest(logits, k.where(has_top_k, MAX_TOP_TOKENS * has_top_p))
    values = highest.values
    kth = values.gather(1, (k.clamp(max=values.shape[1]) - 1).unsqueeze(1))
    values = values.masked_fill(has_top_k.unsqueeze(1) & (values < kth), -torch.inf)

    # Summed from the highest on, so that padding columns at the end have no effect.
    weights = (values - values[:, :1]).double().exp()
    sums = weights.cumsum(1)
    totals = sums[:, -1]
    if has_top_p.any():
        totals = totals.where(has_top_k, 1 / logits.softmax(1).amax(1).double())
    limits = p * totals
    is_kept = (sums - weights < limits.unsqueeze(1)) | (p == 1.0).unsqueeze(1)
    is_kept[:, 0] = True
    return TopTokens(
        values=values.masked_fill(~is_kept, -torch.inf),
        tokens=highest.tokens,
        is_found=values[:, 0].isfinite() & (has_top_k | (sums[:, -1] >= limits)),
        is_free=(k == vocabulary) & (p == 1.0),
    )


def find_highest(logits: torch.Tensor, counts: torch.Tensor) -> Highest:
    """Return at least the `counts` (rows,) highest logits of each row, with all their ties.

    None for a row whose count is 0, that contains NaN, or that has too many ties.
    """
    vocabulary = logits.shape[1]
    whole = vocabulary // BLOCK * BLOCK
    blocks = torch.unflatten(logits[:, :whole], 1, (-1, BLOCK))
    rest = torch.nn.functional.pad(logits[:, whole:], (0, whole + BLOCK - vocabulary), value=-torch.inf)
    maxima = torch.cat([blocks.amax(2), rest.amax(1, keepdim=True)], 1)
    # If n blocks contain a logit this high, at least n tokens have one.
    highest = maxima.topk(max(1, int(counts.max())), dim=1).values
    least = highest.gather(1, (counts - 1).clamp(min=0).unsqueeze(1))
    least = least.clamp(min=torch.finfo(logits.dtype).min).masked_fill((counts == 0).unsqueeze(1), torch.inf)

    is_candidate = (maxima >= least) & ~highest[:, :1].isnan()
    is_candidate &= is_candidate.sum(1, keepdim=True) <= MAX_BLOCKS
    row, block = is_candidate.nonzero(as_tuple=True)
    is_rest = block == blocks.shape[1]
    value = blocks[row, block.masked_fill(is_rest, 0)]
    value[is_rest] = rest[row[is_rest]]
    entry, offset = (value >= least[row]).nonzero(as_tuple=True)
    return _sort_rows(len(logits), row[entry], block[entry] * BLOCK + offset, value[entry, offset])


def _sort_rows(rows: int, row: torch.Tensor, token: torch.Tensor, value: torch.Tensor) -> Highest:
    """Return `value` as a table, leaving out rows with more than MAX_CANDIDATES values.

    `row` ascends, and within it `token`.
    """
    sizes = row.bincount(minlength=rows)
    is_excluded = sizes > MAX_CANDIDATES
    if is_excluded.any():
        is_kept = ~is_excluded[row]
        row, token, value = row[is_kept], token[is_kept], value[is_kept]
        sizes = sizes.masked_fill(is_excluded, 0)
    column = torch.arange(len(row)) - (sizes.cumsum(0) - sizes)[row]
    # Whole vectors only: other instructions compute the last few elements of an array.
    shape = (rows, -(-max(1, int(sizes.max())) // BLOCK) * BLOCK)
    values = torch.full(shape, -torch.inf, dtype=value.dtype).index_put_((row, column), value)
    tokens = torch.zeros(shape, dtype=torch.long).index_put_((row, column), token)
    values, order = values.sort(dim=1, stable=True)
    return Highest(values=values.flip(1), tokens=tokens.gather(1, order).flip(1))


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
    """Shift 64 bits right, unsigned."""
    return (bits >> places) & ((1 << (64 - places)) - 1)
