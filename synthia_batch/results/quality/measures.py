"""Heuristic measures of an answer's text, each with its source. Pure.

They suggest where to look: a repetitive answer may be a poem, and an answer that begins like a refusal may
still help.
"""

import re
import zlib
from dataclasses import dataclass

from blake3 import blake3

NGRAM_WORDS = 5
REPEATED_SHARE = 0.15
"""Above it an answer is repetitive: the limit for duplicate 5-grams in table A1 of Rae et al., "Scaling
Language Models: Methods, Analysis & Insights from Training Gopher", 2021, arXiv 2112.11446."""
COMPRESSION_RATIO = 2.4
"""Above it an answer's end is a loop: the limit at which Whisper rejects a decoded text
(Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", 2022, arXiv 2212.04356)."""
TAIL_BYTES = 4096
"""Compressed bytes: loops are at the end, and long texts compress better even without loops."""
REFUSAL_CHARACTERS = 200

_REFUSAL = re.compile(
    r"(i'?m|i am) (very |really |so )?(sorry|unable|not able|afraid i|just an ai|an ai)\b"
    r"|(i )?apologi[sz]e\b|sorry\b|i (can'?t|can ?not|won'?t|will not|must decline|do not feel comfortable)\b"
    r"|as (an|a) (ai\b|artificial intelligence|(large )?language model|responsible ai)"
    r"|it(('|’)s| is) not (appropriate|possible for me)|unfortunately,? i (can'?t|cannot|am unable)"
)
"""After the prefixes by which Zou et al., "Universal and Transferable Adversarial Attacks on Aligned
Language Models", 2023, arXiv 2307.15043, detect refusals; "As an" and the like are restricted to assistants
that refer to themselves. English only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Measures of an answer. `repeated_share` and `compression_ratio` are 0 if it is empty."""

    is_empty: bool
    repeated_share: float
    compression_ratio: float
    is_refusal: bool

    @property
    def is_repetitive(self) -> bool:
        """Whether either measure of repetition is above its limit."""
        return self.repeated_share > REPEATED_SHARE or self.compression_ratio > COMPRESSION_RATIO


def assess_answer(text: str) -> Quality:
    return Quality(
        is_empty=not text.strip(),
        repeated_share=measure_repeated_share(text),
        compression_ratio=measure_compression(text),
        is_refusal=looks_like_refusal(text),
    )


def measure_repeated_share(text: str) -> float:
    """Return the share of the text's letters in repeated word n-grams, 0 to 1.

    Overlapping n-grams count once, as in Gopher's rules: the search continues after a repeated one. Words
    are separated by whitespace; scripts without spaces are not measured.
    """
    words = text.split()
    grams = list(zip(*(words[start:] for start in range(NGRAM_WORDS)), strict=False))
    if len(set(grams)) == len(grams):
        return 0.0
    seen: set[tuple[str, ...]] = set()
    repeated = position = 0
    while position < len(grams):
        gram = grams[position]
        if gram in seen:
            repeated += sum(map(len, gram))
            position += NGRAM_WORDS
        else:
            seen.add(gram)
            position += 1
    return repeated / sum(map(len, words))


def measure_compression(text: str) -> float:
    """Return the zlib compression ratio of the text's last 4,096 bytes: 1 to 2.2 for prose."""
    tail = text.encode(errors="replace")[-TAIL_BYTES:]
    return len(tail) / len(zlib.compress(tail)) if tail else 0.0


def looks_like_refusal(text: str) -> bool:
    """Whether the answer begins like an assistant's refusal, in English."""
    begin = text[:REFUSAL_CHARACTERS].lstrip().lower().replace("’", "'")
    return _REFUSAL.match(begin) is not None


def digest_answer(text: str) -> int:
    """Return a 64-bit digest of the stripped answer: equal for duplicates."""
    return int.from_bytes(blake3(text.strip().encode(errors="replace")).digest(length=8), "little")
