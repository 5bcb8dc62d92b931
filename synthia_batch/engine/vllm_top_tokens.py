"""The tokens that top-k and top-p leave, found without a sort of the vocabulary.

vLLM 0.32.0 sorts every row's logits for a top-p, which on a CPU takes longer than all the rest of a step,
and goes through all of them with a heap for a top-k. Here a vocabulary is cut into blocks: the highest
logit of each says which few may hold a row's highest tokens, and only those are looked into.

A top-k keeps what vLLM keeps, ties included. With a top-p, whose sums are added up in another order here,
a token within a rounding error of the limit may fall on its other side, and of tokens tied at the limit
others may stay: vLLM's sort leaves open which. Nothing of a row depends on the other rows.
"""

from dataclasses import dataclass

import torch

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
