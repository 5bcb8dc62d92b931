"""An endpoint: any server that speaks OpenAI's API, asked through the official client.

The server has the batch, the cache and the weights; this module adds what a batch run needs of it: so many
requests in flight, patience with a server that is busy or away, and one outcome per request.

A request that a server cannot take ends as the row's own failure. One that it fails at is tried again; it
is given up only once the server has answered a small question of ours meanwhile: otherwise the server is
at fault, and that is waited out.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import httpx2
import openai

from synthia_batch.core.backoff import Backoff
from synthia_batch.core.types import Failed, Message, Outcome, Request
from synthia_batch.errors import PoolFailed, SampleRefused, UsageError
from synthia_batch.job.resolved import EngineSpec
from synthia_batch.workers.engine import EngineFacts, Placement
from synthia_batch.workers.openai.errors import RequestFailed, ServerAway, api_errors
from synthia_batch.workers.openai.protocol import ServedModel, ServedModels, build_body, parse, read_answer
from synthia_batch.workers.openai.retry import BACKOFF, Patience
from synthia_batch.workers.openai.settings import parse_settings

STEP_SECONDS = 0.2
"""A step waits no longer: new requests, a drain and the watchdog come between two of them."""
TRIES = 4
"""Of a request that the server fails at, before the server is asked whether it can do anything at all."""
CONNECT_SECONDS = 10.0
QUESTION_TOKENS = 16
"""Of the small question: the least that OpenAI's reasoning models take."""
NO_KEY = "none"
"""What is sent where no key was said: a client cannot send nothing."""
_QUESTION = "Say OK."
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
            max_retries=0,  # Its own would know nothing of the others in flight.
            timeout=httpx2.Timeout(self._settings.timeout_seconds, connect=CONNECT_SECONDS),
            http_client=openai.DefaultAsyncHttpxClient(
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None)
            ),
        )
        self._server = Patience(self._settings)
        self._waiting: deque[Request] = deque()
        self._running: dict[asyncio.Task[Outcome], Request] = {}
        self._error: BaseException | None = None
        self._cached_prompt_tokens = 0
        self._loop = asyncio.new_event_loop()
        try:
            self._model = self._loop.run_until_complete(self._greet())
        except BaseException:
            self.close()
            raise

    @property
    def facts(self) -> EngineFacts:
        """What the server says of its model stands for the version. A tenth more than what is in flight."""
        concurrency = self._settings.concurrency
        return EngineFacts(
            engine="openai",
            version=self._model.describe(),
            device=self._settings.base_url,
            capacity=concurrency + max(2, concurrency // 10),
            max_model_len=self._model.max_model_len or self._spec.max_model_len,
        )

    @property
    def cached_prompt_tokens(self) -> int:
        """What the server says that its prefix cache served."""
        return self._cached_prompt_tokens

    def add(self, request: Request) -> None:
        """Queue `request`. Only the server knows how long its prompt is."""
        self._waiting.append(request)

    def step(self) -> Sequence[Outcome]:
        """Send what may be in flight, wait a moment for answers, and return those that came.

        Raises:
            PoolFailed: The server has been away for longer than it may.
            UsageError: It does not let us in any more, or has not the model any more.
        """
        if self._error is not None:
            self.close()
            raise self._error
        return self._loop.run_until_complete(self._advance())

    def withdraw(self) -> Sequence[int]:
        """Forget what was not sent yet."""
        ordinals = [request.ordinal for request in self._waiting]
        self._waiting.clear()
        return ordinals

    def abort(self) -> None:
        """Forget every request; those in flight are hung up on."""
        self._waiting.clear()
        self._loop.run_until_complete(self._cancel())

    def close(self) -> None:
        """Hang up."""
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
            self._running[asyncio.create_task(self._make(request))] = request
        if not self._running:
            return []
        done, _ = await asyncio.wait(self._running, timeout=STEP_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        outcomes: list[Outcome] = []
        for task in done:
            del self._running[task]
            error = task.exception()
            if error is None:
                outcomes.append(task.result())
            else:  # The next step ends the worker: what was answered is handed on first.
                self._error = error
        return outcomes

    async def _make(self, request: Request) -> Outcome:
        """Return what the server makes of `request`, as often as it has to be asked."""
        tries, backoff = 0, Backoff(BACKOFF)
        while True:
            await self._server.wait_for_turn()
            try:
                outcome = await self._ask(request)
            except SampleRefused as refused:
                self._server.note_answer()
                return Failed(ordinal=request.ordinal, code=refused.code, message=str(refused))
            except ServerAway as away:
                await self._server.wait_out(away, backoff)
            except RequestFailed as failed:
                tries += 1
                if tries >= TRIES and await self._can_do_anything():
                    message = f"the server failed at it {TRIES} times: {failed}"
                    return Failed(ordinal=request.ordinal, code="engine_error", message=message)
                await self._server.wait_out(failed, backoff)
            else:
                self._server.note_answer()
                return outcome

    async def _ask(self, request: Request) -> Outcome:
        body = build_body(self._spec, self._settings, request)
        resource = "chat/completions" if self._settings.api == "chat" else "completions"
        with api_errors(self._settings.base_url, self._key):
            response = await self._client.post(f"/{resource}", body=body, cast_to=httpx2.Response)
            outcome, cached_tokens = read_answer(response.content, request)
        self._cached_prompt_tokens += cached_tokens
        return outcome

    async def _greet(self) -> ServedModel:
        """Return what the server says of the model, once it has answered a small question with it.

        A server that loads is waited for; one that is not there at all is not, nobody began to wait.

        Raises:
            PoolFailed: Nobody is there, or it has been busy for too long.
            UsageError: It does not let us in, has not the model, or will not have the job's sampling.
        """
        model = await self._insist(self._find_model)
        try:
            await self._insist(self._ask_question)
        except SampleRefused as refused:
            raise UsageError(
                f"{self._settings.base_url} will not answer {_QUESTION!r} as this job asks: {refused}\n"
                "it would not answer anything else: look at the sampling, engine.extra_body and "
                "engine.max_tokens_field"
            ) from None
        return model

    async def _insist(self, ask: Callable[[], Awaitable[Result]]) -> Result:
        backoff = Backoff(BACKOFF)
        while True:
            try:
                return await ask()
            except ServerAway as away:
                if away.is_unreachable:
                    raise PoolFailed(
                        f"no server answers at {self._settings.base_url} ({away}): start it, or say where it "
                        "is with --base-url; what was finished is kept"
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
                f"{self._settings.base_url} has no model {name!r}; it lists {known}: say --model NAME"
            )
        return found

    async def _ask_question(self) -> Outcome:
        question = Request(
            ordinal=-1,
            token_ids=_QUESTION.encode(),
            messages=(Message("user", _QUESTION),),
            seed=0,
            max_tokens=min(QUESTION_TOKENS, self._spec.sampling.max_tokens),
        )
        return await self._ask(question)

    async def _can_do_anything(self) -> bool:
        """Whether the server answers a small question."""
        try:
            await self._ask_question()
        except (ServerAway, RequestFailed, SampleRefused):
            return False
        return True
