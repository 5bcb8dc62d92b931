"""The tokens that top-k and top-p leave, found without a sort of the vocabulary.

vLLM 0.32.0 sorts every row's logits for a top-p, which on a CPU takes longer than all the rest of a step,
and goes through all of them with a heap for a top-k. Here a vocabulary is cut into blocks: the highest
logit of each says which few may hold a row's highest tokens, and only those are looked into.

A top-k keeps what vLLM keeps, ties included. With a top-p, whose sums are added up in another order here,
a token within a rounding error of the limit may fall on its other side, and of tokens tied at the limit
others may stay: vLLM's sort leaves open which. Nothing of a row depends on the other rows.

Draws tokens in vLLM's CPU engine among those few that top-k and top-p leave, as vLLM would draw them.

vLLM 0.32.0, where it has no Triton for CPUs, writes -inf over all others, and its kernel, which takes the
token whose logit and noise come to most, goes through the whole vocabulary once more. The noise depends on
the row's seed and the token alone, so that of the few it can be had by itself. The same tokens are drawn,
unless two come to the same in some 16 digits, or a top-p leaves others than vLLM's would: see
vllm_top_tokens. Rows that have neither are the kernel's as they are; vLLM sorts them where others have a
top-p.

Figures: benchmarks/results/2026-11-22-top-tokens.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from vllm.config.model import PROCESSED_LOGPROBS_MODES
from vllm.v1.sample.ops import topk_topp_sampler as vllm_sampler
from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

BLOCK = 64
"""Tokens in a block. With smaller ones the first pass takes longer, with larger ones the second."""
MOST_TOKENS = 256
"""No larger top-k is looked for, and a top-p among this many of a row's highest tokens, with their equals."""
MOST_BLOCKS, MOST_EQUALS = 2 * MOST_TOKENS, 16 * MOST_TOKENS
"""Nothing is found in a row with more blocks to look into, or more tokens in them: logits that are equal
mostly, for which memory would be taken in all rows."""
LEAST_VOCABULARY = MOST_TOKENS * BLOCK
"""Smaller ones have fewer blocks than tokens may be looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopTokens:
    """What is left of each row: logits, float32, and their tokens, both (rows, columns). The logits of what
    is left out are -inf. `is_found` (rows,) says where this is so: of the other rows nothing is known, but
    that nothing at all is left out of those that are `is_free` (rows,).
    """

    values: torch.Tensor
    tokens: torch.Tensor
    is_found: torch.Tensor
    is_free: torch.Tensor


def find_top_tokens(logits: torch.Tensor, k: torch.Tensor | None, p: torch.Tensor | None) -> TopTokens:
    """Return what a top-k and a top-p leave of `logits`, (rows, at least LEAST_VOCABULARY), float32.

    `k` and `p` are (rows,); a row without a top-k has the size of the vocabulary, one without a top-p 1.0.
    """
    rows, vocabulary = logits.shape
    k = torch.full((rows,), vocabulary) if k is None else k.long()
    p = torch.ones(rows) if p is None else p
    has_few = k <= MOST_TOKENS
    has_share = (k == vocabulary) & (p < 1.0)
    highest = find_highest(logits, k.where(has_few, MOST_TOKENS * has_share))
    values = highest.values
    kth = values.gather(1, (k.clamp(max=values.shape[1]) - 1).unsqueeze(1))
    values = values.masked_fill(has_few.unsqueeze(1) & (values < kth), -torch.inf)

    # Added up from the highest on, so that columns at the end, which are there for other rows, do not show.
    weights = (values - values[:, :1]).double().exp()
    sums = weights.cumsum(1)
    totals = sums[:, -1]
    if has_share.any():
        totals = totals.where(has_few, 1 / logits.softmax(1).amax(1).double())
    limits = p * totals
    is_kept = (sums - weights < limits.unsqueeze(1)) | (p == 1.0).unsqueeze(1)
    is_kept[:, 0] = True
    return TopTokens(
        values=values.masked_fill(~is_kept, -torch.inf),
        tokens=highest.tokens,
        is_found=values[:, 0].isfinite() & (has_few | (sums[:, -1] >= limits)),
        is_free=(k == vocabulary) & (p == 1.0),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Highest:
    """The highest logits of each row, the highest first, and their tokens: both (rows, columns).

    After a row's last one its logits are -inf. Of equal ones that of the higher token comes first.
    """

    values: torch.Tensor
    tokens: torch.Tensor


def find_highest(logits: torch.Tensor, counts: torch.Tensor) -> Highest:
    """Return at least the `counts` (rows,) highest logits of each row, with all that are equal to one.

    None of a row whose count is 0, that has no number for a logit, or in which too much is equal.
    """
    vocabulary = logits.shape[1]
    whole = vocabulary // BLOCK * BLOCK
    blocks = torch.unflatten(logits[:, :whole], 1, (-1, BLOCK))
    rest = torch.nn.functional.pad(logits[:, whole:], (0, whole + BLOCK - vocabulary), value=-torch.inf)
    maxima = torch.cat([blocks.amax(2), rest.amax(1, keepdim=True)], 1)
    # Where n blocks have a logit as high as this, so have n tokens.
    highest = maxima.topk(max(1, int(counts.max())), dim=1).values
    least = highest.gather(1, (counts - 1).clamp(min=0).unsqueeze(1))
    least = least.clamp(min=torch.finfo(logits.dtype).min).masked_fill((counts == 0).unsqueeze(1), torch.inf)

    is_wanted = (maxima >= least) & ~highest[:, :1].isnan()
    is_wanted &= is_wanted.sum(1, keepdim=True) <= MOST_BLOCKS
    row, block = is_wanted.nonzero(as_tuple=True)
    is_rest = block == blocks.shape[1]
    value = blocks[row, block.masked_fill(is_rest, 0)]
    value[is_rest] = rest[row[is_rest]]
    entry, place = (value >= least[row]).nonzero(as_tuple=True)
    return _sort_rows(len(logits), row[entry], block[entry] * BLOCK + place, value[entry, place])


def _sort_rows(rows: int, row: torch.Tensor, token: torch.Tensor, value: torch.Tensor) -> Highest:
    """Return `value` as a table, each in its row, but for rows with more than MOST_EQUALS.

    `row` and in it `token` ascend.
    """
    sizes = row.bincount(minlength=rows)
    has_most = sizes > MOST_EQUALS
    if has_most.any():
        is_taken = ~has_most[row]
        row, token, value = row[is_taken], token[is_taken], value[is_taken]
        sizes = sizes.masked_fill(has_most, 0)
    column = torch.arange(len(row)) - (sizes.cumsum(0) - sizes)[row]
    # Whole vectors only: the last few elements of an array are computed by other instructions.
    shape = (rows, -(-max(1, int(sizes.max())) // BLOCK) * BLOCK)
    values = torch.full(shape, -torch.inf, dtype=value.dtype).index_put_((row, column), value)
    tokens = torch.zeros(shape, dtype=torch.long).index_put_((row, column), token)
    values, order = values.sort(dim=1, stable=True)
    return Highest(values=values.flip(1), tokens=tokens.gather(1, order).flip(1))


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
