"""Which waiting requests a vLLM engine lets in: as many as one step is to take, and as fit in the KV cache.

Imports nothing of vLLM.
"""

CPU_PREFILL_TOKENS = 1024
"""Of prompts let in for one step, about. Steps of 8,192 fall out of the CPU's caches; see
benchmarks/results/2026-11-21-admission.md."""
CPU_FIRST_PREFILL_TOKENS = 256
"""The same in the first steps of an engine that had nothing to do: smaller ones, so that the first answers,
where they are short, are there before the batch is full. All along they would cost 2 to 4% of the time."""
CPU_FIRST_STEPS = 24
"""How many first steps there are, unless a request ends before."""
CPU_FIRST_SEQS = 32
"""The batch is no larger than that in the first steps."""
CPU_SHORT_SEQS = 8
"""Nor than that where the first request must end with them: it is not to wait for the others' prompts."""


class StepBudget:
    """How much a CPU engine takes in for its next step, with a batch of `max_num_seqs` at most."""

    def __init__(self, max_num_seqs: int) -> None:
        self._max_num_seqs = max_num_seqs
        self._first_seqs = max_num_seqs
        self._first_steps = 0

    def begin(self, first_tokens: int) -> None:
        """Take note that a batch begins: its first request ends after `first_tokens` at most."""
        seqs = CPU_SHORT_SEQS if first_tokens <= CPU_FIRST_STEPS else CPU_FIRST_SEQS
        self._first_seqs = min(self._max_num_seqs, seqs)
        self._first_steps = CPU_FIRST_STEPS

    def is_full(self, running: int, prompt_tokens: int) -> bool:
        """Whether no more is to be let in where `running` requests run or were let in, and with the
        latter `prompt_tokens` of prompts.
        """
        if self._first_steps:
            return running >= self._first_seqs or prompt_tokens >= CPU_FIRST_PREFILL_TOKENS
        return running >= self._max_num_seqs or prompt_tokens >= CPU_PREFILL_TOKENS

    def note_step(self, *, ended: bool) -> None:
        """Take note of a step, and whether a request `ended` with it."""
        self._first_steps = 0 if ended else max(0, self._first_steps - 1)


class KvRoom:
    """Counts the KV cache's `blocks`, of `block_size` tokens each, that running requests may come to need."""

    def __init__(self, blocks: int, block_size: int) -> None:
        self._blocks = blocks
        self._block_size = block_size
        self._free = blocks

    def holds(self, tokens: int) -> bool:
        """Whether `tokens` fit in an empty cache."""
        return self.count_blocks(tokens) <= self._blocks

    def take(self, tokens: int) -> bool:
        """Reserve room for `tokens`; False where there is none."""
        blocks = self.count_blocks(tokens)
        if blocks > self._free:
            return False
        self._free -= blocks
        return True

    def give_back(self, tokens: int) -> None:
        """End a reservation."""
        self._free += self.count_blocks(tokens)

    def count_blocks(self, tokens: int) -> int:
        """Return how many blocks `tokens` take."""
        return -(-tokens // self._block_size)
