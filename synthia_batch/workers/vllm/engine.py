"""The vLLM engine, driven step by step.

vLLM provides the request queue, the batch and the step. This module adds what a batch run needs: token ids
in, one outcome per request as soon as it ends, and in strict determinism tokens that do not depend on the
rest of the batch.
"""

from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext

import torch
import vllm
from vllm import LLM, SamplingParams
from vllm.inputs import tokens_input
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.platforms import current_platform

from synthia_batch.core.errors import DeterminismBroken
from synthia_batch.core.hardware import name_cpu, name_driver, name_gpus
from synthia_batch.core.types import Failed, Finished, Outcome, Request
from synthia_batch.job.resolved import EngineSpec
from synthia_batch.workers.engine import EngineFacts, Placement, check_prompt_length
from synthia_batch.workers.environment import describe_environment
from synthia_batch.workers.process_log import ProcessLog
from synthia_batch.workers.vllm.admission import StepBudget, open_kv_budget
from synthia_batch.workers.vllm.arguments import engine_arguments
from synthia_batch.workers.vllm.compat import client_errors, patch_cpu
from synthia_batch.workers.vllm.core_process import has_own_process, watch_core
from synthia_batch.workers.vllm.errors import check_kernels, core_errors, memory_errors, setting_errors
from synthia_batch.workers.vllm.outputs import convert_answer, open_splitter
from synthia_batch.workers.vllm.params import check_params, count_kept_logprobs, make_params
from synthia_batch.workers.vllm.policy import check_capability
from synthia_batch.workers.vllm.prefix_cache import PrefixCache, name_taken
from synthia_batch.workers.vllm.segments import Segment, count_taken
from synthia_batch.workers.vllm.tool_calls import open_call_reader

ENGINE_ERROR_TRIES = 3
"""Tries of a request that vLLM ends with the reason `error`, which may be temporary."""


class VllmEngine:
    """Implements `Engine`; see the module."""

    def __init__(self, spec: EngineSpec, placement: Placement) -> None:
        self._spec = spec
        self._spans_nodes = placement.spans_nodes
        if spec.device == "cuda" and spec.determinism == "strict" and not placement.spans_nodes:
            _check_gpu()  # On several machines vLLM's own workers check their GPUs.
        zeroing = patch_cpu(spec, vllm.__version__) if spec.device == "cpu" else nullcontext()
        self._log = ProcessLog()
        with core_errors(self._log, is_loading=True), memory_errors(), setting_errors(), zeroing:
            arguments = engine_arguments(spec, placement)
            check_params(spec)
            self._splitter = open_splitter(arguments)
            self._call_reader = open_call_reader(spec.settings, arguments)
            self._llm = LLM(**arguments)
        _check_threads(spec)
        self._engine = self._llm.llm_engine
        watch_core(self._engine.engine_core)
        config = self._engine.vllm_config
        check_kernels(spec.device, config.model_config.quantization)
        self._max_num_seqs = config.scheduler_config.max_num_seqs
        self._vocabulary = config.model_config.get_vocab_size()
        self._budget = StepBudget(self._max_num_seqs) if spec.device == "cpu" else None
        is_strict = spec.determinism == "strict"
        self._kv_budget = open_kv_budget(config.cache_config, spec) if is_strict else None
        # For some models vLLM has no prefix cache.
        self._prefixes = (
            PrefixCache(self._engine, config.cache_config)
            if spec.cuts_prefixes and config.cache_config.enable_prefix_caching
            else None
        )
        self._adapters = {
            adapter.name: LoRARequest(adapter.name, number, str(adapter.path))
            for number, adapter in enumerate(spec.adapters, start=1)
        }
        self._waiting: deque[Request] = deque()
        self._running: dict[str, Request] = {}
        self._segments: dict[str, tuple[Segment, ...]] = {}  # Of those that run.
        self._errors: dict[str, int] = {}
        self._refused: list[Outcome] = []
        self.cached_prompt_tokens = 0

    @property
    def facts(self) -> EngineFacts:
        """Capacity is a tenth more than the batch, so that no slot waits for the driver."""
        return EngineFacts(
            engine="vllm",
            version=vllm.__version__,
            device=self._name_device(),
            capacity=self._max_num_seqs + max(2, self._max_num_seqs // 10),
            max_model_len=self._engine.model_config.max_model_len,
            numerics=self._describe_numerics(),
            ends_with_process=self._ends_with_process(),
            max_num_seqs=self._max_num_seqs,
        )

    def adopt(self, spec: EngineSpec) -> None:
        """Answer with the sampling and the structure of `spec`. The prefix cache keeps what it has."""
        with setting_errors():
            check_params(spec)
        self._spec = spec
        self._errors.clear()
        self.cached_prompt_tokens = 0
        if not has_own_process(self._engine.engine_core):
            self._log = ProcessLog()  # The output may go to another file now.

    def add(self, request: Request) -> None:
        """Queue `request`; refuse it if its prompt leaves no room for an answer."""
        check_prompt_length(request, self._spec.max_model_len)
        self._waiting.append(request)

    def step(self) -> Sequence[Outcome]:
        """Admit the requests that fit, run one step, and return what ended with it."""
        self._admit()
        outcomes, self._refused = self._refused, []
        if not self._running:
            return outcomes
        with core_errors(self._log, is_loading=False), memory_errors():
            outputs = self._engine.step()
        for output in outputs:
            if isinstance(output, RequestOutput) and output.finished:
                outcomes += self._finish(output)
        if self._prefixes is not None:
            for name in self._prefixes.take_missed(self._segments):
                self._start(self._running.pop(name))
        if self._budget is not None:
            self._budget.note_step(ended=bool(outcomes))
        return outcomes

    def withdraw(self) -> Sequence[int]:
        """Drop the requests that wait for the batch or for the KV cache.

        On GPUs, the tenth of a batch in vLLM's own queue counts as started.
        """
        ordinals = [request.ordinal for request in self._waiting]
        self._waiting.clear()
        return ordinals

    def abort(self) -> None:
        if self._prefixes is not None:
            self._prefixes.abort()
        self._engine.abort_request(list(self._running))
        for request in self._running.values():
            self._release(request)
        self._running.clear()
        self._waiting.clear()

    def close(self) -> None:
        """Shut down the engine core, ending its processes and freeing the device."""
        self.abort()
        self._engine.engine_core.shutdown()

    def _ends_with_process(self) -> bool:
        devices = self._spec.tensor_parallel_size * self._spec.pipeline_parallel_size
        is_here = not has_own_process(self._engine.engine_core)
        return is_here and self._spec.device == "cpu" and devices == 1

    def _name_device(self) -> str:
        if self._spec.device == "cpu":
            return name_cpu()
        # Not by torch: it would initialize CUDA in this process. If other actors hold the GPUs, this process
        # may see none.
        return next(iter(name_gpus()), "") if self._spans_nodes else current_platform.get_device_name(0)

    def _describe_numerics(self) -> dict[str, str]:
        # str: torch's own version class would import torch where it is unpickled.
        numerics = {"torch": str(torch.__version__), "dtype": str(self._engine.model_config.dtype)}
        if leftovers := describe_environment(self._spec):
            numerics["environment"] = leftovers
        if self._spec.device == "cpu":
            return numerics | {
                "threads": str(torch.get_num_threads()),
                "instructions": torch.backends.cpu.get_cpu_capability(),
            }
        return numerics | {"CUDA": str(torch.version.cuda), "driver": name_driver()}

    def _admit(self) -> None:
        """Pass waiting requests to vLLM; in strict determinism only while all fit at their maximum length.

        vLLM recomputes a preempted request as one prefill, which is not bitwise equal to its decode. With
        the maximum length reserved, no request is preempted.
        """
        if self._budget is not None and self._waiting and not self._running:
            self._budget.begin(self._max_answer_tokens(self._waiting[0]))
        prompt_tokens = 0
        while self._waiting and not self._is_step_full(prompt_tokens):
            request = self._waiting[0]
            segments = self._prefixes.split(request) if self._prefixes is not None else ()
            tokens = self._max_tokens(request)
            if self._kv_budget is not None and not self._kv_budget.reserve(tokens, segments):
                break
            self._waiting.popleft()
            self._segments[_name(request)] = segments
            prompt_tokens += self._start(request)

    def _start(self, request: Request) -> int:
        """Pass an admitted request to vLLM; return the prompt tokens to compute for it."""
        name = _name(request)
        adapter = self._adapters.get(request.adapter or "")
        params = self._make_params(request)
        tokens = len(request.token_ids)
        try:
            if self._prefixes is not None:
                segments = self._segments[name]
                tokens += self._prefixes.compute_missing(request, segments, adapter)
                tokens -= count_taken(segments)
                params = name_taken(params, name, segments)
            self._engine.add_request(
                name, tokens_input(list(request.token_ids)), params, lora_request=adapter
            )
        except client_errors() as exc:
            self._release(request)
            self._refused.append(Failed(ordinal=request.ordinal, code="refused_by_engine", message=str(exc)))
            return 0
        self._running[name] = request
        return tokens

    def _is_step_full(self, prompt_tokens: int) -> bool:
        """Whether to admit no more for this step, with `prompt_tokens` admitted already.

        On a CPU vLLM steps in this process, so holding requests back does not delay them. Elsewhere its own
        queue must never be empty.
        """
        return self._budget is not None and self._budget.is_full(len(self._running), prompt_tokens)

    def _finish(self, output: RequestOutput) -> list[Outcome]:
        if self._prefixes is not None and self._prefixes.end_segment(output):
            return []
        request = self._running.pop(output.request_id)
        if self._prefixes is not None and self._prefixes.is_missed(output, self._segments[_name(request)]):
            self._start(request)
            return []
        self._release(request)
        self.cached_prompt_tokens += output.num_cached_tokens or 0
        answer = output.outputs[0]
        if answer.finish_reason == "error":
            return self._retry(request)
        finished = convert_answer(request, answer, count_kept_logprobs(self._spec, request))
        if request.ordinal < 0:  # A canary may be cut off anywhere, and only its text is compared.
            return [finished]
        outcome: Outcome = finished
        if self._splitter is not None:
            outcome = self._splitter.split(finished, request.template_kwargs)
        if self._call_reader is not None and request.tools and isinstance(outcome, Finished):
            outcome = self._call_reader.read(outcome, request)
        return [outcome]

    def _retry(self, request: Request) -> list[Outcome]:
        tries = self._errors.get(_name(request), 0) + 1
        self._errors[_name(request)] = tries
        if tries < ENGINE_ERROR_TRIES:
            self._waiting.append(request)
            return []
        message = f"vLLM ended it with an error {tries} times"
        return [Failed(ordinal=request.ordinal, code="engine_error", message=message)]

    def _max_tokens(self, request: Request) -> int:
        """Return the maximum length of prompt and answer."""
        limit = request.max_tokens or self._spec.sampling.max_tokens
        return min(len(request.token_ids) + limit, self._spec.max_model_len)

    def _make_params(self, request: Request) -> SamplingParams:
        params = make_params(self._spec, request, self._max_answer_tokens(request), self._vocabulary)
        if self._call_reader is not None and request.tools:
            skips = params.skip_special_tokens
            params.skip_special_tokens = self._call_reader.skips_special_tokens(request, skips=skips)
        return params

    def _max_answer_tokens(self, request: Request) -> int:
        return self._max_tokens(request) - len(request.token_ids)

    def _release(self, request: Request) -> None:
        segments = self._segments.pop(_name(request), ())
        if self._kv_budget is not None:
            self._kv_budget.release(self._max_tokens(request), segments)


def _name(request: Request) -> str:
    """Return vLLM's id of `request`, different for each turn of a conversation."""
    return f"{request.ordinal}.{request.turn}" if request.turn else str(request.ordinal)


def _check_gpu() -> None:
    """Check that this process's first GPU can be strictly deterministic, without initializing CUDA here."""
    name = current_platform.get_device_name(0)
    capability = current_platform.get_device_capability(0) if current_platform.is_cuda() else None
    check_capability((capability.major, capability.minor) if capability else None, name)


def _check_threads(spec: EngineSpec) -> None:
    threads = torch.get_num_threads()
    if spec.device == "cpu" and spec.determinism == "strict" and threads != 1:
        raise DeterminismBroken(
            f"the CPU engine runs {threads} threads, expected 1: several split attention differently; find "
            "what overrides OMP_NUM_THREADS here, or use --determinism fast"
        )
