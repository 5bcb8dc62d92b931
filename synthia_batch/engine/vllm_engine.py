"""vLLM, driven step by step. The only module that imports vllm or torch.

The request queue, the batch and the step are vLLM's own; this module adds what a batch run needs
of them: token ids in, one outcome per request as soon as it ends, and in strict determinism
tokens that do not depend on what else is in the batch.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import vllm
from vllm import LLM, SamplingParams
from vllm.exceptions import VLLMClientError
from vllm.inputs import tokens_input
from vllm.model_executor.layers import utils as vllm_layers
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind

from synthia_batch.engine.base import EngineFacts, check_prompt_length
from synthia_batch.engine.seat import Seat
from synthia_batch.errors import DeterminismBroken, EngineOutOfMemory, UsageError
from synthia_batch.hardware import name_cpu, total_memory_bytes
from synthia_batch.job.declared import Sampling
from synthia_batch.job.resolved import EngineSpec
from synthia_batch.rows import Failed, Finished, Outcome, Request

CPU_MAX_NUM_SEQS = 128
CPU_KV_CACHE_BYTES = 4 * 2**30
"""The most that a CPU engine takes for its KV cache unless told otherwise."""
BATCH_HALVINGS = 3
"""The first halvings are the batch's: down to an eighth it costs little speed."""
GPU_MAX_NUM_SEQS = 256
"""Where halving starts if nobody has said how many; vLLM's own choice depends on the GPU."""
GPU_MEMORY_SHARE = 0.92
"""vLLM's default gpu_memory_utilization: weights, activations and KV cache together."""
GPU_SHARE_KEPT = 0.85
"""Per further halving: the weights stay as large as they are."""
MIN_GEMM_ROWS = 16
"""Below a few rows the CPU's GEMM takes another path, which rounds differently."""
TRIES_AFTER_ENGINE_ERROR = 3
"""vLLM ends a request with the reason `error` where trying again is worth it."""


class VllmEngine:
    """Implements `Engine`; see the module."""

    def __init__(self, spec: EngineSpec, seat: Seat) -> None:
        self._spec = spec
        if spec.device == "cpu" and spec.determinism == "strict":
            _pad_small_gemms()
        with _memory_errors(), _setting_errors():
            SamplingParams(**sampling_arguments(spec.sampling))
            self._llm = LLM(**engine_arguments(spec, seat))
        _check_threads(spec)
        self._engine = self._llm.llm_engine
        config = self._engine.vllm_config
        self._max_num_seqs = config.scheduler_config.max_num_seqs
        self._room = _KvRoom(config.cache_config) if spec.determinism == "strict" else None
        if self._room is not None and not self._room.holds(spec.max_model_len):
            raise UsageError(
                f"the KV cache does not hold one sample of {spec.max_model_len} tokens; give it more memory "
                "with --set engine.kv_cache_memory_bytes=BYTES, or less to hold with --set "
                "model.max_model_len=TOKENS"
            )
        self._waiting: deque[Request] = deque()
        self._running: dict[str, Request] = {}
        self._errors: dict[int, int] = {}
        self._cached_prompt_tokens = 0

    @property
    def facts(self) -> EngineFacts:
        """Capacity is a tenth more than the batch, so that a place never waits for the driver."""
        on_gpu = self._spec.device == "cuda"
        return EngineFacts(
            engine="vllm",
            version=vllm.__version__,
            device=torch.cuda.get_device_name(0) if on_gpu else name_cpu(),
            capacity=self._max_num_seqs + max(2, self._max_num_seqs // 10),
            max_model_len=self._engine.model_config.max_model_len,
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
        with _memory_errors():
            outputs = self._engine.step()
        for output in outputs:
            if isinstance(output, RequestOutput) and output.finished:
                outcomes += self._end(output)
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

    def _admit(self) -> list[Outcome]:
        """Hand waiting requests to vLLM, in strict mode only while all fit at their longest.

        A request that vLLM preempts is recomputed as one prefill, which is not bitwise its
        decode. What fits at its longest is never preempted.
        """
        refused: list[Outcome] = []
        while self._waiting:
            # On a CPU vLLM steps in this process, so that what is kept back here is not late.
            if self._spec.device == "cpu" and len(self._running) >= self._max_num_seqs:
                break
            request = self._waiting[0]
            if self._room is not None and not self._room.take(self._longest(request)):
                break
            self._waiting.popleft()
            try:
                self._engine.add_request(
                    str(request.ordinal), tokens_input(list(request.token_ids)), self._params(request)
                )
            except (VLLMClientError, ValueError) as exc:
                self._release(request)
                refused.append(Failed(ordinal=request.ordinal, code="refused_by_engine", message=str(exc)))
            else:
                self._running[str(request.ordinal)] = request
        return refused

    def _end(self, output: RequestOutput) -> list[Outcome]:
        request = self._running.pop(output.request_id)
        self._release(request)
        self._cached_prompt_tokens += output.num_cached_tokens or 0
        answer = output.outputs[0]
        if answer.finish_reason == "error":
            return self._try_again(request)
        return [
            Finished(
                ordinal=request.ordinal,
                response=answer.text,
                reasoning=None,
                finish_reason=answer.finish_reason or "unknown",
                prompt_tokens=len(request.token_ids),
                completion_tokens=len(answer.token_ids),
            )
        ]

    def _try_again(self, request: Request) -> list[Outcome]:
        tries = self._errors.get(request.ordinal, 0) + 1
        self._errors[request.ordinal] = tries
        if tries < TRIES_AFTER_ENGINE_ERROR:
            self._waiting.append(request)
            return []
        message = f"vLLM ended it with an error {tries} times"
        return [Failed(ordinal=request.ordinal, code="engine_error", message=message)]

    def _longest(self, request: Request) -> int:
        limit = request.max_tokens or self._spec.sampling.max_tokens
        return min(len(request.token_ids) + limit, self._spec.max_model_len)

    def _release(self, request: Request) -> None:
        if self._room is not None:
            self._room.give_back(self._longest(request))

    def _params(self, request: Request) -> SamplingParams:
        sampling = self._spec.sampling
        return SamplingParams(
            **sampling_arguments(sampling),
            max_tokens=self._longest(request) - len(request.token_ids),
            seed=request.seed,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )


class _KvRoom:
    """Counts the KV cache blocks that running requests may come to need."""

    def __init__(self, cache_config: Any) -> None:
        self._block_size = int(cache_config.block_size)
        self._blocks = int(cache_config.num_gpu_blocks) - 1  # vLLM keeps one block for itself.
        self._free = self._blocks

    def holds(self, tokens: int) -> bool:
        """Whether `tokens` fit in an empty cache."""
        return self._count(tokens) <= self._blocks

    def take(self, tokens: int) -> bool:
        """Reserve room for `tokens`; False where there is none."""
        blocks = self._count(tokens)
        if blocks > self._free:
            return False
        self._free -= blocks
        return True

    def give_back(self, tokens: int) -> None:
        """End a reservation."""
        self._free += self._count(tokens)

    def _count(self, tokens: int) -> int:
        return -(-tokens // self._block_size)


def engine_arguments(spec: EngineSpec, seat: Seat) -> dict[str, Any]:
    """Return the arguments of `vllm.LLM`: defaults, then what determinism needs, then the user's own."""
    model = spec.model
    local = model.path is not None and model.path.is_dir()
    arguments: dict[str, Any] = {
        "model": str(model.path) if local else model.repo_id,
        "revision": None if local else model.revision,
        "trust_remote_code": model.trust_remote_code,
        "dtype": spec.dtype,
        "quantization": spec.quantization,
        "max_model_len": spec.max_model_len,
        "tensor_parallel_size": spec.tensor_parallel_size,
        "pipeline_parallel_size": spec.pipeline_parallel_size,
        "seed": 0,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if spec.device == "cpu":
        arguments |= _cpu_arguments(spec, seat)
    if spec.determinism == "strict":
        # A prefix taken from the cache was computed in another batch shape than one that was not.
        arguments["enable_prefix_caching"] = False
        if spec.device == "cuda":
            # FlashAttention 3 was seen to break batch invariance on H100 (vllm#51902, #47069).
            arguments["attention_backend"] = "TRITON_ATTN"
    return _shrink(arguments | dict(spec.settings), seat.halvings)


def _shrink(arguments: dict[str, Any], halvings: int) -> dict[str, Any]:
    """Return `arguments` for an engine that has run out of memory `halvings` times.

    First the batch is halved; what is still too much then comes from the KV cache.
    """
    if not halvings:
        return arguments
    of_batch = min(halvings, BATCH_HALVINGS)
    of_cache = halvings - of_batch
    sequences = arguments.get("max_num_seqs", GPU_MAX_NUM_SEQS)
    smaller = {**arguments, "max_num_seqs": max(1, sequences >> of_batch)}
    if arguments.get("kv_cache_memory_bytes"):
        smaller["kv_cache_memory_bytes"] = arguments["kv_cache_memory_bytes"] >> of_cache
    elif of_cache:
        share = arguments.get("gpu_memory_utilization", GPU_MEMORY_SHARE)
        smaller["gpu_memory_utilization"] = share * GPU_SHARE_KEPT**of_cache
    return smaller


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Turn what torch and Python raise for want of memory into EngineOutOfMemory.

    An engine core in a process of its own dies of it without saying so: see `supervise`.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as exc:
        raise EngineOutOfMemory(f"{type(exc).__name__}: {exc}") from exc


@contextmanager
def _setting_errors() -> Iterator[None]:
    """Turn what vLLM says of arguments that it cannot use into UsageError: loading again would not help."""
    try:
        yield
    except (TypeError, ValueError) as exc:  # pydantic's and vLLM's own validation errors are ValueErrors
        raise UsageError(
            f"vLLM cannot start with these settings: {exc}\n"
            "change what it names, with --set engine.KEY=VALUE or the model's and sampling's own flags"
        ) from exc


def _check_threads(spec: EngineSpec) -> None:
    threads = torch.get_num_threads()
    if spec.device == "cpu" and spec.determinism == "strict" and threads != 1:
        raise DeterminismBroken(
            f"the CPU engine runs {threads} threads, which split attention otherwise than one does; "
            "something here sets them after OMP_NUM_THREADS: find it, or use --determinism fast"
        )


def sampling_arguments(sampling: Sampling) -> dict[str, Any]:
    """Return the arguments of `SamplingParams` that are the same for every sample of a job."""
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "stop": list(sampling.stop) or None,
    }


def _cpu_arguments(spec: EngineSpec, seat: Seat) -> dict[str, Any]:
    share = total_memory_bytes() // (4 * seat.neighbours)
    return {
        "max_num_seqs": CPU_MAX_NUM_SEQS,
        # Compiling gains 7% of speed and costs 40 s of start (shared measurements of 2026-11-21).
        "enforce_eager": True,
        # Seeded sampling with a chunked prefill kills vLLM's CPU engine; a prefill that is not
        # chunked must fit one step.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(spec.max_model_len, 2048),
        "kv_cache_memory_bytes": min(CPU_KV_CACHE_BYTES, share),
    }


def _pad_small_gemms() -> None:
    """Make vLLM's unquantized CPU GEMM see at least MIN_GEMM_ROWS rows.

    With that, one thread and no prefix cache, a row's tokens are the same in a batch of any size.
    Raises AttributeError where vLLM has moved the function: better no engine than a wrong claim.
    """
    dispatch = vllm_layers.dispatch_cpu_unquantized_gemm
    if getattr(dispatch, "pads_small_gemms", False):
        return

    def dispatch_padded(layer: torch.nn.Module, remove_weight: bool) -> None:
        dispatch(layer, remove_weight)
        linear = getattr(layer, "cpu_linear", None)
        if linear is not None:
            layer.cpu_linear = _pad_rows(linear)  # type: ignore[assignment]

    dispatch_padded.pads_small_gemms = True  # type: ignore[attr-defined]
    vllm_layers.dispatch_cpu_unquantized_gemm = dispatch_padded


def _pad_rows(linear: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def padded(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        rows = x.numel() // x.shape[-1]
        if rows >= MIN_GEMM_ROWS:
            return linear(x, weight, bias)
        flat = torch.nn.functional.pad(x.reshape(rows, x.shape[-1]), (0, 0, 0, MIN_GEMM_ROWS - rows))
        out = linear(flat, weight, bias)[:rows]
        return out.reshape(*x.shape[:-1], out.shape[-1])

    return padded
