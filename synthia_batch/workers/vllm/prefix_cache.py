"""Requests and their prefix segments in vLLM's engine: what is missing is computed first; see `segments`."""

from collections.abc import Mapping, Sequence

from vllm import SamplingParams
from vllm.config import CacheConfig
from vllm.inputs import tokens_input
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.llm_engine import LLMEngine

from synthia_batch.core.types import Request
from synthia_batch.workers.vllm.prefix_cuts import MISSES, install, name_cuts
from synthia_batch.workers.vllm.segments import Segment, SegmentTable, count_taken, split_prompt


class PrefixCache:
    """The prefix cache of `engine`, which vLLM's config `cache` describes."""

    def __init__(self, engine: LLMEngine, cache: CacheConfig) -> None:
        install()
        self._engine = engine
        self._block_size = int(cache.block_size)
        self._table = SegmentTable(capacity=int(cache.num_gpu_blocks or 1))
        self._computing: dict[str, Sequence[Segment]] = {}
        self._computed = 0

    def split(self, request: Request) -> tuple[Segment, ...]:
        return split_prompt(request, self._block_size)

    def compute_missing(
        self, request: Request, segments: Sequence[Segment], adapter: LoRARequest | None
    ) -> int:
        """Add a request for each of `segments` that the cache lacks; return their tokens.

        `request`, added next, finds them in the same step: vLLM caches blocks as it schedules them, and keeps
        the order.
        """
        missing = self._table.add(segments)
        for segment in missing:
            self._computed += 1
            name = f"segment {self._computed}"
            chain = segments[: segments.index(segment) + 1]
            params = SamplingParams(
                max_tokens=1,
                temperature=0.0,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
                extra_args=name_cuts(name, [one.stop for one in chain], segment.start),
            )
            tokens = tokens_input(list(request.token_ids[: segment.stop]))
            self._engine.add_request(name, tokens, params, lora_request=adapter)
            self._computing[name] = chain
        return sum(segment.stop - segment.start for segment in missing)

    def end_segment(self, output: RequestOutput) -> bool:
        """Return whether `output` is a segment's, which has ended with it."""
        chain = self._computing.pop(output.request_id, None)
        if chain is None:
            return False
        found = output.num_cached_tokens or 0
        if found != chain[-1].start:
            self._table.forget(chain, found)
        return True

    def is_missed(self, output: RequestOutput, segments: Sequence[Segment]) -> bool:
        """Return whether the request of `output` took other blocks than `segments`: it does not count."""
        taken = count_taken(segments)
        cached = output.num_cached_tokens or 0
        found = MISSES.pop(output.request_id, None)
        if found is None and cached == taken:
            return False
        self._table.forget(segments, cached if found is None else found)
        return True

    def take_missed(self, running: Mapping[str, Sequence[Segment]]) -> list[str]:
        """Return the names of the `running` requests that missed some of their segments, and end them."""
        if not MISSES:
            return []
        missed = [name for name in MISSES if name in running]
        for name in missed:
            self._table.forget(running[name], MISSES[name])
        MISSES.clear()
        self._engine.abort_request(missed)
        return missed

    def abort(self) -> None:
        """Drop the requests for segments."""
        for chain in self._computing.values():
            self._table.forget(chain, chain[-1].start)
        self._engine.abort_request(list(self._computing))
        self._computing.clear()
        MISSES.clear()


def name_taken(params: SamplingParams, name: str, segments: Sequence[Segment]) -> SamplingParams:
    """Return `params` for the request `name`, which takes `segments` from the cache."""
    cuts = [segment.stop for segment in segments]
    params.extra_args = {**(params.extra_args or {}), **name_cuts(name, cuts, count_taken(segments))}
    return params
