"""vLLM, driven step by step.

The request queue, the batch and the step are vLLM's own; this module adds what a batch run needs
of them: token ids in, one outcome per request as soon as it ends, and in strict determinism
tokens that do not depend on what else is in the batch.
"""

from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import vllm
from vllm import LLM, SamplingParams
from vllm.exceptions import VLLMClientError
from vllm.inputs import tokens_input
from vllm.lora.request import LoRARequest
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RepetitionDetectionParams, RequestOutputKind

from synthia_batch.core.hardware import name_cpu, name_driver, name_gpus
from synthia_batch.core.types import Failed, Finished, Logprobs, Outcome, Request, Structure
from synthia_batch.errors import DeterminismBroken, UsageError
from synthia_batch.job.resolved import EngineSpec
from synthia_batch.job.sampling import Sampling
from synthia_batch.workers.engine import EngineFacts, Placement, check_prompt_length
from synthia_batch.workers.vllm.admission import KvRoom, StepBudget
from synthia_batch.workers.vllm.arguments import engine_arguments, override_sampling, sampling_arguments
from synthia_batch.workers.vllm.batch_invariance import make_gemms_batch_invariant
from synthia_batch.workers.vllm.core_process import has_own_process, watch_core
from synthia_batch.workers.vllm.cpu_patches import lazy_zeros, spare_rows_without_adapter
from synthia_batch.workers.vllm.errors import memory_errors, setting_errors
from synthia_batch.workers.vllm.outputs import check_params, make_structured, open_reasoning, read_logprobs
from synthia_batch.workers.vllm.policy import check_capability
from synthia_batch.workers.vllm.sampler import draw_among_few

TRIES_AFTER_ENGINE_ERROR = 3
"""vLLM ends a request with the reason `error` where trying again is worth it."""


class VllmEngine:
    """Implements `Engine`; see the module."""

    def __init__(self, spec: EngineSpec, placement: Placement) -> None:
        self._spec = spec
        self._spans_nodes = placement.spans_nodes
        if spec.determinism == "strict":
            _prepare_strict(spec, placement)
        if spec.device == "cpu":
            draw_among_few()
            if spec.adapters:
                spare_rows_without_adapter()
        lazily = lazy_zeros() if spec.device == "cpu" else nullcontext()
        with memory_errors(), setting_errors(), lazily:
            arguments = engine_arguments(spec, placement)
            check_params(_make_params(spec.sampling, spec.structure), spec.settings)
            self._reasoning = open_reasoning(arguments)
            self._llm = LLM(**arguments)
        _check_threads(spec)
        self._engine = self._llm.llm_engine
        watch_core(self._engine.engine_core)
        config = self._engine.vllm_config
        self._max_num_seqs = config.scheduler_config.max_num_seqs
        self._budget = StepBudget(self._max_num_seqs) if spec.device == "cpu" else None
        self._room = _open_room(config.cache_config, spec) if spec.determinism == "strict" else None
        self._adapters = {
            adapter.name: LoRARequest(adapter.name, number, str(adapter.path))
            for number, adapter in enumerate(spec.adapters, start=1)
        }
        self._waiting: deque[Request] = deque()
        self._running: dict[str, Request] = {}
        self._errors: dict[str, int] = {}
        self._cached_prompt_tokens = 0

    @property
    def facts(self) -> EngineFacts:
        """Capacity is a tenth more than the batch, so that a place never waits for the driver."""
        return EngineFacts(
            engine="vllm",
            version=vllm.__version__,
            device=self._name_device(),
            capacity=self._max_num_seqs + max(2, self._max_num_seqs // 10),
            max_model_len=self._engine.model_config.max_model_len,
            numerics=self._describe_numerics(),
            ends_with_process=self._ends_with_process(),
        )

    @property
    def cached_prompt_tokens(self) -> int:
        """What vLLM's prefix cache has served; nothing in strict mode, where it is off."""
        return self._cached_prompt_tokens

    def add(self, request: Request) -> None:
        """Queue `request`, refused where its prompt leaves no room for an answer."""
        check_prompt_length(request, self._spec.max_model_len)
        self._waiting.append(request)

    def step(self) -> Sequence[Outcome]:
        """Let in what there is room for, run one step, and return what ended with it."""
        outcomes = self._admit()
        if not self._running:
            return outcomes
        with memory_errors():
            outputs = self._engine.step()
        for output in outputs:
            if isinstance(output, RequestOutput) and output.finished:
                outcomes += self._end(output)
        if self._budget is not None:
            self._budget.note_step(ended=bool(outcomes))
        return outcomes

    def withdraw(self) -> Sequence[int]:
        """Forget what waits for a place in the batch or for room in the KV cache.

        On GPUs, a tenth of a batch that vLLM has in its own queue counts as begun.
        """
        ordinals = [request.ordinal for request in self._waiting]
        self._waiting.clear()
        return ordinals

    def abort(self) -> None:
        """Drop every request."""
        self._engine.abort_request(list(self._running))
        for request in self._running.values():
            self._release(request)
        self._running.clear()
        self._waiting.clear()

    def close(self) -> None:
        """Shut the engine core down: its processes, if it has any, and the device's memory."""
        self.abort()
        self._engine.engine_core.shutdown()

    def _ends_with_process(self) -> bool:
        devices = self._spec.tensor_parallel_size * self._spec.pipeline_parallel_size
        is_here = not has_own_process(self._engine.engine_core)
        return is_here and self._spec.device == "cpu" and devices == 1

    def _name_device(self) -> str:
        if self._spec.device == "cpu":
            return name_cpu()
        # A worker whose GPUs are other actors' has none that torch may use.
        return next(iter(name_gpus()), "") if self._spans_nodes else torch.cuda.get_device_name(0)

    def _describe_numerics(self) -> dict[str, str]:
        # torch's version is a class of its own: whoever unpickles one imports torch.
        numerics = {"torch": str(torch.__version__), "dtype": str(self._engine.model_config.dtype)}
        if self._spec.device == "cpu":
            return numerics | {
                "threads": str(torch.get_num_threads()),
                "instructions": torch.backends.cpu.get_cpu_capability(),
            }
        return numerics | {"CUDA": str(torch.version.cuda), "driver": name_driver()}

    def _admit(self) -> list[Outcome]:
        """Hand waiting requests to vLLM, in strict mode only while all fit at their longest.

        A request that vLLM preempts is recomputed as one prefill, which is not bitwise its
        decode. What fits at its longest is never preempted.
        """
        if self._budget is not None and self._waiting and not self._running:
            self._budget.begin(self._count_room(self._waiting[0]))
        refused: list[Outcome] = []
        prompt_tokens = 0
        while self._waiting and not self._is_step_full(prompt_tokens):
            request = self._waiting[0]
            if self._room is not None and not self._room.take(self._longest(request)):
                break
            self._waiting.popleft()
            prompt_tokens += len(request.token_ids)
            try:
                self._engine.add_request(
                    _name(request),
                    tokens_input(list(request.token_ids)),
                    self._params(request),
                    lora_request=self._adapters.get(request.adapter or ""),
                )
            except (VLLMClientError, ValueError) as exc:
                self._release(request)
                refused.append(Failed(ordinal=request.ordinal, code="refused_by_engine", message=str(exc)))
            else:
                self._running[_name(request)] = request
        return refused

    def _is_step_full(self, prompt_tokens: int) -> bool:
        """Whether no more is to be let in for this step, with `prompt_tokens` let in already.

        On a CPU vLLM steps in this process, so that what is kept back here is not late. Elsewhere
        its own queue must never be empty.
        """
        return self._budget is not None and self._budget.is_full(len(self._running), prompt_tokens)

    def _end(self, output: RequestOutput) -> list[Outcome]:
        request = self._running.pop(output.request_id)
        self._release(request)
        self._cached_prompt_tokens += output.num_cached_tokens or 0
        answer = output.outputs[0]
        if answer.finish_reason == "error":
            return self._try_again(request)
        made = Finished(
            ordinal=request.ordinal,
            response=answer.text,
            reasoning=None,
            finish_reason=answer.finish_reason or "unknown",
            prompt_tokens=len(request.token_ids),
            completion_tokens=len(answer.token_ids),
            logprob=answer.cumulative_logprob if request.tells_logprob else None,
            logprobs=self._read_logprobs(answer),
            turn=request.turn,
        )
        # A canary may be cut anywhere, and only its text is compared.
        is_parsed = self._reasoning is not None and request.ordinal >= 0
        return [self._reasoning.split(made) if self._reasoning is not None and is_parsed else made]

    def _read_logprobs(self, answer: CompletionOutput) -> Logprobs | None:
        count = self._spec.sampling.logprobs
        if count is None:
            return None
        places = [place for place in answer.logprobs or () if place is not None]
        return read_logprobs(answer.token_ids, places, count)

    def _count_logprobs(self, request: Request) -> int | None:
        if self._spec.sampling.logprobs is not None:
            return self._spec.sampling.logprobs
        # On GPUs they are not batch invariant where the tokens are (vllm#51187).
        return 0 if request.tells_logprob and self._spec.device == "cpu" else None

    def _try_again(self, request: Request) -> list[Outcome]:
        tries = self._errors.get(_name(request), 0) + 1
        self._errors[_name(request)] = tries
        if tries < TRIES_AFTER_ENGINE_ERROR:
            self._waiting.append(request)
            return []
        message = f"vLLM ended it with an error {tries} times"
        return [Failed(ordinal=request.ordinal, code="engine_error", message=message)]

    def _longest(self, request: Request) -> int:
        limit = request.max_tokens or self._spec.sampling.max_tokens
        return min(len(request.token_ids) + limit, self._spec.max_model_len)

    def _count_room(self, request: Request) -> int:
        """Return how many tokens the answer to `request` may have."""
        return self._longest(request) - len(request.token_ids)

    def _release(self, request: Request) -> None:
        if self._room is not None:
            self._room.give_back(self._longest(request))

    def _params(self, request: Request) -> SamplingParams:
        sampling = override_sampling(self._spec.sampling, request)
        structure = request.structure or self._spec.structure
        if structure is not None:  # It says where an answer ends, whatever the job says of others.
            sampling = sampling.model_copy(update={"min_tokens": 0, "ignore_eos": False})
        room = self._count_room(request)
        return _make_params(
            sampling,
            structure,
            max_tokens=room,
            min_tokens=min(sampling.min_tokens, room),
            seed=request.seed,
            logprobs=self._count_logprobs(request),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )


def _make_params(sampling: Sampling, structure: Structure | None, **more: Any) -> SamplingParams:
    arguments = sampling_arguments(sampling)
    pattern = arguments.pop("repetition_detection")
    return SamplingParams(
        **arguments,
        repetition_detection=RepetitionDetectionParams(**pattern) if pattern is not None else None,
        # Made anew each time: vLLM writes into it.
        structured_outputs=make_structured(structure) if structure is not None else None,
        **more,
    )


def _name(request: Request) -> str:
    """Return the id under which vLLM gets `request`: of each turn of a conversation another."""
    return f"{request.ordinal}.{request.turn}" if request.turn else str(request.ordinal)


def _open_room(cache: Any, spec: EngineSpec) -> KvRoom:
    """Return the KV cache's room, empty.

    Raises:
        UsageError: One sample does not fit, or vLLM needs more for one than is counted here.
    """
    room = KvRoom(int(cache.num_gpu_blocks) - 1, int(cache.block_size))  # vLLM keeps one block for itself.
    blocks_of_longest = round(cache.num_gpu_blocks / cache.kv_cache_max_concurrency)
    if blocks_of_longest > room.count_blocks(spec.max_model_len):
        raise UsageError(
            f"vLLM keeps several kinds of KV cache for {spec.model.name}, so that samples could be "
            "preempted, which shows in their tokens; use --determinism fast"
        )
    if not room.holds(spec.max_model_len):
        raise UsageError(
            f"the KV cache does not hold one sample of {spec.max_model_len} tokens; give it more memory "
            "with --set engine.kv_cache_memory_bytes=BYTES, or less to hold with --set "
            "model.max_model_len=TOKENS"
        )
    return room


def _prepare_strict(spec: EngineSpec, placement: Placement) -> None:
    """Make ready what must stand before the model loads.

    Raises:
        UsageError: This GPU cannot.
    """
    if spec.device == "cpu":
        make_gemms_batch_invariant()
    elif not placement.spans_nodes:  # Such a worker has no GPU of its own; vLLM's refuse by themselves.
        check_capability(torch.cuda.get_device_capability(0), torch.cuda.get_device_name(0))


def _check_threads(spec: EngineSpec) -> None:
    threads = torch.get_num_threads()
    if spec.device == "cpu" and spec.determinism == "strict" and threads != 1:
        raise DeterminismBroken(
            f"the CPU engine runs {threads} threads, which split attention otherwise than one does; "
            "something here sets them after OMP_NUM_THREADS: find it, or use --determinism fast"
        )
