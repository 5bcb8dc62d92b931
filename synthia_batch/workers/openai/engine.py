"""The endpoint engine: any server with OpenAI's API, called through the official client.

The server has the batch, the cache and the weights. This module adds what a batch run needs: a fixed number
of requests in flight, waiting for a server that is busy or unreachable, and one outcome per request.

A request that the server refuses fails its row. One that causes a server error is retried, and fails only
after the server has answered a small probe request: otherwise the server is at fault, and the engine waits.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import httpx2
import openai

from synthia_batch.core.backoff import Backoff
from synthia_batch.core.errors import PoolFailed, SampleRefused, UsageError
from synthia_batch.core.types import Failed, Message, Outcome, Request
from synthia_batch.job.resolved import EngineSpec
from synthia_batch.workers.engine import EngineFacts, Placement
from synthia_batch.workers.openai.errors import RequestFailed, ServerAway, api_errors
from synthia_batch.workers.openai.protocol import ServedModel, ServedModels, build_body, parse, read_answer
from synthia_batch.workers.openai.retry import BACKOFF, Patience
from synthia_batch.workers.openai.settings import parse_settings

STEP_SECONDS = 0.2
"""Longest wait of a step, so that new requests, a drain and the watchdog are handled in between."""
TRIES = 4
"""Tries of a request that causes a server error, before the server is probed."""
CONNECT_SECONDS = 10.0
PROBE_TOKENS = 16
"""Answer limit of the probe request: the minimum of OpenAI's reasoning models."""
NO_KEY = "none"
"""Sent if no key is set: the client requires one."""
_PROBE = "Say OK."
Result = TypeVar("Result")


class OpenAIEngine:
    """Implements `Engine`; see the module. Its event loop runs within `step` only."""

    def __init__(self, spec: EngineSpec, placement: Placement) -> None:
        self._spec = spec
        self._settings = parse_settings(spec.settings)
        self._key = self._settings.api_key or NO_KEY
        self._client = openai.AsyncOpenAI(
            base_url=self._settings.base_url,
            api_key=self._key,
            max_retries=0,  # The client's own retries ignore other requests in flight.
            timeout=httpx2.Timeout(self._settings.timeout_seconds, connect=CONNECT_SECONDS),
            http_client=openai.DefaultAsyncHttpxClient(
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None)
            ),
        )
        self._server = Patience(self._settings)
        self._waiting: deque[Request] = deque()
        self._running: dict[asyncio.Task[Outcome], Request] = {}
        self._error: BaseException | None = None
        self.cached_prompt_tokens = 0  # As far as the server reports them.
        self._loop = asyncio.new_event_loop()
        try:
            self._model = self._loop.run_until_complete(self._connect())
        except BaseException:
            self.close()
            raise

    @property
    def facts(self) -> EngineFacts:
        """The version is the server's description of its model. Capacity is a tenth above the concurrency."""
        concurrency = self._settings.concurrency
        return EngineFacts(
            engine="openai",
            version=self._model.describe(),
            device=self._settings.base_url,
            capacity=concurrency + max(2, concurrency // 10),
            max_model_len=self._model.max_model_len or self._spec.max_model_len,
        )

    def adopt(self, spec: EngineSpec) -> None:
        """Send requests as `spec` says."""
        self._spec = spec
        self.cached_prompt_tokens = 0

    def add(self, request: Request) -> None:
        """Queue `request`. Only the server knows the length of its prompt."""
        self._waiting.append(request)

    def step(self) -> Sequence[Outcome]:
        """Send requests up to the concurrency, wait briefly, and return the answers that arrived.

        Raises:
            PoolFailed: The server has been unreachable or busy for too long.
            UsageError: It no longer accepts the key, or no longer has the model.
        """
        if self._error is not None:
            self.close()
            raise self._error
        return self._loop.run_until_complete(self._advance())

    def withdraw(self) -> Sequence[int]:
        """Drop the requests that are not sent yet."""
        ordinals = [request.ordinal for request in self._waiting]
        self._waiting.clear()
        return ordinals

    def abort(self) -> None:
        """Drop all requests, closing those in flight."""
        self._waiting.clear()
        self._loop.run_until_complete(self._cancel())

    def close(self) -> None:
        self.abort()
        self._loop.run_until_complete(self._client.close())
        self._loop.close()

    async def _cancel(self) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        self._running.clear()

    async def _advance(self) -> list[Outcome]:
        while self._waiting and len(self._running) < self._settings.concurrency:
            request = self._waiting.popleft()
            self._running[asyncio.create_task(self._generate(request))] = request
        if not self._running:
            return []
        done, _ = await asyncio.wait(self._running, timeout=STEP_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        outcomes: list[Outcome] = []
        for task in done:
            del self._running[task]
            error = task.exception()
            if error is None:
                outcomes.append(task.result())
            else:  # The next step raises it, after these answers are delivered.
                self._error = error
        return outcomes

    async def _generate(self, request: Request) -> Outcome:
        """Return the outcome of `request`, sent as often as necessary."""
        tries, backoff = 0, Backoff(BACKOFF)
        while True:
            await self._server.wait_for_turn()
            try:
                outcome = await self._send(request)
            except SampleRefused as refused:
                self._server.note_answer()
                return Failed(ordinal=request.ordinal, code=refused.code, message=str(refused))
            except ServerAway as away:
                await self._server.wait_out(away, backoff)
            except RequestFailed as failed:
                tries += 1
                if tries >= TRIES and await self._is_working():
                    message = f"the server failed at it {TRIES} times: {failed}"
                    return Failed(ordinal=request.ordinal, code="engine_error", message=message)
                await self._server.wait_out(failed, backoff)
            else:
                self._server.note_answer()
                return outcome

    async def _send(self, request: Request) -> Outcome:
        body = build_body(self._spec, self._settings, request)
        resource = "chat/completions" if self._settings.api == "chat" else "completions"
        with api_errors(self._settings.base_url, self._key):
            response = await self._client.post(f"/{resource}", body=body, cast_to=httpx2.Response)
            outcome, cached_tokens = read_answer(response.content, request)
        self.cached_prompt_tokens += cached_tokens
        return outcome

    async def _connect(self) -> ServedModel:
        """Return the server's description of the model, once it has answered a probe request.

        Waits for a server that is still loading, but not for one that is unreachable.
        """
        model = await self._retry(self._find_model)
        try:
            await self._retry(self._send_probe)
        except SampleRefused as refused:
            raise UsageError(
                f"{self._settings.base_url} refuses {_PROBE!r} with this job's settings: {refused}\n"
                "it would refuse every other prompt too: check the sampling, engine.extra_body and "
                "engine.max_tokens_field"
            ) from None
        return model

    async def _retry(self, call: Callable[[], Awaitable[Result]]) -> Result:
        backoff = Backoff(BACKOFF)
        while True:
            try:
                return await call()
            except ServerAway as away:
                if away.is_unreachable:
                    raise PoolFailed(
                        f"no server answers at {self._settings.base_url} ({away}): start it, or set its "
                        "address with --base-url; finished samples are kept"
                    ) from None
                await self._server.wait_out(away, backoff)
            except RequestFailed as failed:
                await self._server.wait_out(failed, backoff)

    async def _find_model(self) -> ServedModel:
        with api_errors(self._settings.base_url, self._key):
            response = await self._client.get("/models", cast_to=httpx2.Response)
            listed = parse(ServedModels, response.content).data
        name = self._spec.model.name
        found = next((model for model in listed if model.id == name), None)
        if found is None:
            known = ", ".join(model.id for model in listed[:10]) or "none"
            raise UsageError(
                f"{self._settings.base_url} has no model {name!r}; it lists {known}: use --model NAME"
            )
        return found

    async def _send_probe(self) -> Outcome:
        probe = Request(
            ordinal=-1,
            token_ids=_PROBE.encode(),
            messages=(Message("user", _PROBE),),
            seed=0,
            max_tokens=min(PROBE_TOKENS, self._spec.sampling.max_tokens),
        )
        return await self._send(probe)

    async def _is_working(self) -> bool:
        """Whether the server answers a probe request."""
        try:
            await self._send_probe()
        except (ServerAway, RequestFailed, SampleRefused):
            return False
        return True
