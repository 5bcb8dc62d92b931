"""Which waiting requests a vLLM engine admits: as many as fit one step and the KV cache.

Imports nothing of vLLM.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from synthia_batch.core.errors import UsageError
from synthia_batch.job.resolved import EngineSpec
from synthia_batch.workers.vllm.segments import Segment

CPU_PREFILL_TOKENS = 1024
"""Approximate prompt tokens admitted for one step. Steps of 8,192 do not fit the CPU's caches; see
benchmarks/results/2026-11-21-admission.md."""
CPU_FIRST_PREFILL_TOKENS = 256
"""The same in the first steps of an engine that was idle: smaller steps return the first short answers before
the batch is full. Used all the time, they would cost 2 to 4% of the speed."""
CPU_FIRST_STEPS = 24
"""Number of first steps, unless a request ends before."""
CPU_FIRST_SEQS = 32
"""Largest batch in the first steps."""
CPU_SHORT_SEQS = 8
"""Largest batch if the first request must end within the first steps: it must not wait for others."""


class StepBudget:
    """How many requests a CPU engine admits for its next step, up to a batch of `max_num_seqs`."""

    def __init__(self, max_num_seqs: int) -> None:
        self._max_num_seqs = max_num_seqs
        self._first_seqs = max_num_seqs
        self._first_steps = 0

    def begin(self, first_tokens: int) -> None:
        """Start the first steps of a batch whose first request ends after at most `first_tokens`."""
        seqs = CPU_SHORT_SEQS if first_tokens <= CPU_FIRST_STEPS else CPU_FIRST_SEQS
        self._first_seqs = min(self._max_num_seqs, seqs)
        self._first_steps = CPU_FIRST_STEPS

    def is_full(self, running: int, prompt_tokens: int) -> bool:
        """Whether to admit no more, with `running` requests including those admitted for this step, whose
        prompts have `prompt_tokens`.
        """
        if self._first_steps:
            return running >= self._first_seqs or prompt_tokens >= CPU_FIRST_PREFILL_TOKENS
        return running >= self._max_num_seqs or prompt_tokens >= CPU_PREFILL_TOKENS

    def note_step(self, *, ended: bool) -> None:
        """Count a step; `ended`: a request ended with it."""
        self._first_steps = 0 if ended else max(0, self._first_steps - 1)


class KvBudget:
    """Reserves `blocks` of the KV cache, of `block_size` tokens each, for the requests that run.

    Blocks of a segment that several of them share are reserved once.
    """

    def __init__(self, blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self._blocks = blocks
        self._free = blocks
        self._users: Counter[bytes] = Counter()

    def can_hold(self, tokens: int) -> bool:
        """Whether `tokens` fit in an empty cache."""
        return self.count_blocks(tokens) <= self._blocks

    def reserve(self, tokens: int, segments: Sequence[Segment] = ()) -> bool:
        """Reserve blocks for `tokens`, the first of them in `segments`; False if too few are free."""
        blocks = self._count_alone(tokens, segments)
        if blocks > self._free:
            return False
        self._free -= blocks
        self._users.update(segment.key for segment in segments)
        return True

    def release(self, tokens: int, segments: Sequence[Segment] = ()) -> None:
        for segment in segments:
            self._users[segment.key] -= 1
            if not self._users[segment.key]:
                del self._users[segment.key]
        self._free += self._count_alone(tokens, segments)

    def _count_alone(self, tokens: int, segments: Sequence[Segment]) -> int:
        """Return the blocks of `tokens` without those of `segments` that other requests use."""
        shared = sum(one.stop - one.start for one in segments if one.key in self._users)
        return self.count_blocks(tokens) - shared // self.block_size

    def count_blocks(self, tokens: int) -> int:
        """Return the number of blocks that `tokens` occupy."""
        return -(-tokens // self.block_size)


def open_kv_budget(cache: Any, spec: EngineSpec) -> KvBudget:
    """Return the budget of the empty KV cache that vLLM's config `cache` describes.

    Raises:
        UsageError: One sample does not fit, or vLLM needs more blocks for it than are counted here.
    """
    budget = KvBudget(int(cache.num_gpu_blocks) - 1, int(cache.block_size))  # vLLM reserves one block.
    longest_blocks = round(cache.num_gpu_blocks / cache.kv_cache_max_concurrency)
    if longest_blocks > budget.count_blocks(spec.max_model_len):
        raise UsageError(
            f"vLLM uses several kinds of KV cache for {spec.model.name}, so samples could be preempted, "
            "which changes their tokens; use --determinism fast"
        )
    if not budget.can_hold(spec.max_model_len):
        raise UsageError(
            f"the KV cache does not hold one sample of {spec.max_model_len} tokens; enlarge it with --set "
            "engine.kv_cache_memory_bytes=BYTES, or lower --set model.max_model_len=TOKENS"
        )
    return budget
