"""A deterministic engine without weights, for rehearsing a job and for testing faults.

Texts, structured answers and log-probabilities are derived from a hash of the prompt's token ids and the
seed alone, so a run can be killed, resumed and compared byte for byte in seconds.
"""

import json
import os
import time
from array import array
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from blake3 import blake3

from synthia_batch.core.errors import EngineOutOfMemory, UsageError
from synthia_batch.core.files import open_to_append
from synthia_batch.core.types import Failed, Finished, Logprobs, Outcome, Request, Structure
from synthia_batch.job.engine_settings import ScriptedOptions
from synthia_batch.job.resolved import EngineSpec
from synthia_batch.workers.engine import EngineFacts, Placement, check_prompt_length, read_settings

VERSION = "1"
"""Changes whenever the text of a prompt and a seed changes."""
_FIRST_SYLLABLES = "ba ce di fo gu ha ki lo mu na pe ri so tu va we"
_LAST_SYLLABLES = "l n r s m t la ne ri so mu ta lin nor ras tem"
_WORDS = tuple(first + last for first in _FIRST_SYLLABLES.split() for last in _LAST_SYLLABLES.split())


def parse_options(settings: Mapping[str, Any]) -> ScriptedOptions:
    """Return the scripted engine's options.

    Raises:
        UsageError: A setting is unknown or its value invalid, or the call log's directory does not exist.
    """
    options = read_settings(ScriptedOptions, settings, "the scripted engine")
    if options.call_log is not None and not options.call_log.parent.is_dir():
        folder = options.call_log.parent
        raise UsageError(f"engine.call_log={options.call_log}: no directory {folder}; create it first")
    return options


class ScriptedEngine:
    """Implements `Engine`; see the module."""

    cached_prompt_tokens = 0
    """There is no cache."""

    def __init__(self, spec: EngineSpec, placement: Placement) -> None:
        self._options = parse_options(spec.settings)
        self._max_num_seqs = max(1, self._options.max_num_seqs >> placement.reduction.total)
        self.adopt(spec)
        self._max_model_len = spec.max_model_len
        self._waiting: deque[Request] = deque()
        self._running: deque[tuple[float, Request]] = deque()
        self._batch = 0
        call_log = self._options.call_log
        self._call_log = None if call_log is None else open_to_append(call_log)
        time.sleep(self._options.load_seconds)
        self._hang_on_first_load()

    @property
    def facts(self) -> EngineFacts:
        """Capacity is twice the batch, so that the engine is never idle between polls."""
        return EngineFacts(
            engine="scripted",
            version=VERSION,
            device="none",
            capacity=2 * self._max_num_seqs,
            max_model_len=self._max_model_len,
        )

    def adopt(self, spec: EngineSpec) -> None:
        """Answer with the limits and the structure of `spec`."""
        self._max_tokens = spec.sampling.max_tokens
        self._structure = spec.structure
        self._logprobs = spec.sampling.logprobs

    def add(self, request: Request) -> None:
        """Queue `request`; refuse it if its prompt leaves no room for an answer."""
        check_prompt_length(request, self._max_model_len)
        self._waiting.append(request)

    def step(self) -> Sequence[Outcome]:
        """Fill the batch, wait until its first request is due, and return all that are due."""
        while self._waiting and len(self._running) < self._max_num_seqs:
            request = self._waiting.popleft()
            self._inject_faults(request)
            self._running.append((time.monotonic() + self._options.latency_ms / 1000, request))
        self._check_memory()
        if not self._running:
            return ()
        self._batch = len(self._running)
        # Equal latencies: the oldest is due first.
        wait_seconds = self._running[0][0] - time.monotonic()
        if wait_seconds > 0:
            time.sleep(wait_seconds)
        now = time.monotonic()
        outcomes = []
        while self._running and self._running[0][0] <= now:
            outcomes.append(self._generate(self._running.popleft()[1]))
        return outcomes

    def withdraw(self) -> Sequence[int]:
        """Drop the requests that are not in the batch yet."""
        ordinals = [request.ordinal for request in self._waiting]
        self._waiting.clear()
        return ordinals

    def abort(self) -> None:
        self._waiting.clear()
        self._running.clear()

    def close(self) -> None:
        if self._call_log is not None:
            os.close(self._call_log)
            self._call_log = None

    def _hang_on_first_load(self) -> None:
        if self._options.hang_load_once is not None:
            try:
                self._options.hang_load_once.touch(exist_ok=False)
            except FileExistsError:
                return
            time.sleep(10**9)

    def _generate(self, request: Request) -> Outcome:
        if self._call_log is not None and request.ordinal >= 0:
            # One write on an O_APPEND descriptor: lines of several workers never mix.
            turn = b".%d" % request.turn if request.turn else b""
            os.write(self._call_log, b"%d%b\n" % (request.ordinal, turn))
        if self._must_fail(request.ordinal):
            return Failed(ordinal=request.ordinal, code="scripted_failure", message="failed as scripted")
        prompt = _encode_ids(request.token_ids)
        max_words = self._options.max_words
        key = b"%d\0" % (request.seed + self._visible_batch()) + prompt + _encode_sampling(request)
        digest = blake3(key).digest(length=max_words + 1)
        limit = request.max_tokens or self._max_tokens
        room = min(limit, self._max_model_len - len(request.token_ids))
        length = 1 + digest[-1] % max_words
        structure = request.structure or self._structure
        structured = write_structured(structure, digest) if structure is not None else None
        if structured is None:
            words = [_WORDS[byte] for byte in digest[: min(length, room)]]
        else:
            length, words = len(structured.split(" ")), structured.split(" ")[:room]
        logprobs = self._logprobs if request.logprobs is None else request.logprobs
        return Finished(
            ordinal=request.ordinal,
            response=" ".join(words),
            reasoning=None,
            finish_reason="stop" if length <= room else "length",
            prompt_tokens=len(request.token_ids),
            completion_tokens=len(words),
            turn=request.turn,
            logprobs=None if logprobs is None else write_logprobs(words, logprobs, digest),
        )

    def _visible_batch(self) -> int:
        """Return the batch size that changes texts; 0 if the engine is batch invariant."""
        limit = self._options.shows_batch_above
        return self._batch if limit is not None and self._batch > limit else 0

    def _must_fail(self, ordinal: int) -> bool:
        every, fixed = self._options.fail_every, self._options.fail_while_missing
        if every is None or ordinal < 0 or ordinal % every:  # Canaries, below 0, never fail.
            return False
        return fixed is None or not fixed.exists()

    def _check_memory(self) -> None:
        limit = self._options.oom_above
        if limit is not None and len(self._running) > limit:
            raise EngineOutOfMemory(f"{len(self._running)} requests are running, memory holds {limit}")

    def _inject_faults(self, request: Request) -> None:
        if self._options.crash_on is None and self._options.hang_on is None:
            return
        prompt = _encode_ids(request.token_ids)
        if self._options.crash_on and self._options.crash_on.encode() in prompt:
            os.abort()
        if self._options.hang_on and self._options.hang_on.encode() in prompt:
            time.sleep(10**9)


def _encode_ids(token_ids: Sequence[int]) -> bytes:
    """Return UTF-8 bytes as they are, other token ids as decimal text."""
    return token_ids if isinstance(token_ids, bytes) else b" ".join(b"%d" % token for token in token_ids)


def _encode_sampling(request: Request) -> bytes:
    """Return the row's own sampling as bytes; empty if it has none."""
    return f"\0{sorted(request.sampling.items())}".encode() if request.sampling else b""


def write_structured(structure: Structure, digest: bytes) -> str | None:
    """Return a valid answer for `structure`, chosen by the bytes of `digest`.

    None for regular expressions and grammars, which need a backend. JSON Schema: basic keywords only.
    """
    drawn = iter(digest * 64)
    if structure.kind == "choice":
        choices: list[str] = json.loads(structure.text)
        return choices[next(drawn) % len(choices)]
    if structure.kind == "json_schema":
        return json.dumps(_draw(json.loads(structure.text), drawn), ensure_ascii=False)
    return None


def _draw(schema: dict[str, Any], drawn: Iterator[int]) -> Any:
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][next(drawn) % len(schema["enum"])]
    kind = schema.get("type", "object")
    kind = kind[0] if isinstance(kind, list) else kind
    byte = next(drawn, 0)
    if kind == "object":
        properties: dict[str, Any] = schema.get("properties", {})
        return {name: _draw(inner, drawn) for name, inner in properties.items()}
    if kind == "array":
        count = max(schema.get("minItems", 0), 1)
        return [_draw(schema.get("items", {"type": "integer"}), drawn) for _ in range(count)]
    if kind == "string":
        text = f"text {byte}".ljust(schema.get("minLength", 0), "x")
        return text[: schema.get("maxLength")]
    if kind in ("integer", "number"):
        return min(max(byte, schema.get("minimum", byte)), schema.get("maximum", byte))
    return byte % 2 == 0 if kind == "boolean" else None


def write_logprobs(words: Sequence[str], count: int, digest: bytes) -> Logprobs:
    """Return made-up log-probabilities of `words`, each with `count` likelier alternatives in order."""
    entries: list[tuple[int, str, float]] = []
    for position, word in enumerate(words):
        byte = digest[position % len(digest)]
        others = [((byte + rank) % 256, f"{word}{rank}", -(byte + rank) / 7) for rank in range(1, count + 1)]
        entries += [(byte, word, -(byte + count + 1) / 7), *others]
    return Logprobs(
        width=count + 1,
        ids=array("i", [number for number, _, _ in entries]),
        tokens=tuple(word for _, word, _ in entries),
        values=array("f", [value for _, _, value in entries]),
    )
