"""The canary prompts of a job, and the one answer that all its workers must give.

The first worker's answer is saved with the run, together with a description of its engine. A worker that
answers differently, on another machine or another night, would write other bytes; it is refused before it
writes any.
"""

from collections.abc import Mapping
from typing import Any

from synthia_batch.core.checksummed_json import encode_checksummed, read_checksummed
from synthia_batch.core.errors import DeterminismBroken
from synthia_batch.core.types import Request
from synthia_batch.job.resolved import ResolvedJob
from synthia_batch.models.prompts.tokenizer import Renderer, open_renderer
from synthia_batch.storage.atomic import publish_bytes
from synthia_batch.storage.events import read_events
from synthia_batch.storage.layout import RunDir
from synthia_batch.workers.canary import Canaries
from synthia_batch.workers.pools.base import WorkerReady

PROMPT_TOKENS = (6, 40, 200)
"""Lengths of the prompts. About 250 tokens twice, and 8 new ones each, take a second for 135M parameters
on one core; longer prompts would show nothing more, and take more memory."""
CANARY_TOKENS = 8
FILLERS = 24
FILLER_PROMPT_TOKENS = 6
_TEXT = "Say something worth knowing about the number"


def list_canaries(job: ResolvedJob) -> Canaries | None:
    """Return the canaries of `job`, None in fast determinism."""
    if job.engine.determinism == "fast":
        return None
    return make_canaries(
        open_renderer(job.prompt), job.engine.max_model_len, has_cuts=job.engine.cuts_prefixes
    )


def make_canaries(renderer: Renderer, max_model_len: int, *, has_cuts: bool = False) -> Canaries:
    """Return prompts of different lengths, and fillers of which some end with each step.

    They are plain text, which every model and template accepts, cut to the model's length. With `has_cuts`,
    the first half of a prompt is computed when it is alone, and comes from the prefix cache later.
    """
    room = max(1, max_model_len - CANARY_TOKENS)
    lengths = [*PROMPT_TOKENS, *[FILLER_PROMPT_TOKENS] * FILLERS]
    requests = [
        Request(
            ordinal=-n,
            token_ids=_encode(renderer, n, min(length, room)),
            seed=n,
            max_tokens=CANARY_TOKENS if n <= len(PROMPT_TOKENS) else 1 + n % CANARY_TOKENS,
            wants_logprob=True,
            cuts=(min(length, room) // 2,) if has_cuts else (),
        )
        for n, length in enumerate(lengths, start=1)
    ]
    count = len(PROMPT_TOKENS)
    return Canaries(prompts=tuple(requests[:count]), fillers=tuple(requests[count:]))


def check_canary(run_dir: RunDir, ready: WorkerReady) -> None:
    """Compare a worker's answer with the run's; the first answer becomes the run's."""
    compare_canary(run_dir, ready)
    if ready.canary is not None and not run_dir.canary.exists():
        answer = {"texts": ready.canary.texts, "bits": ready.canary.bits}
        publish_bytes(run_dir.canary, encode_checksummed({**answer, "by": ready.facts.describe()}))


def compare_canary(run_dir: RunDir, ready: WorkerReady) -> None:
    """Compare a worker's answer with the run's, if the run has one. Writes nothing.

    Raises:
        DeterminismBroken: The answers differ. Names the differences between the engines.
    """
    known, answer = read_checksummed(run_dir.canary), ready.canary
    if answer is None or known is None:
        return
    if (known["texts"], known["bits"]) == (answer.texts, answer.bits):
        return
    what = "" if known["texts"] != answer.texts else " to the last bit of their probabilities"
    raise DeterminismBroken(
        f"the engines do not answer the canary prompts alike{what}, so their samples would not fit together\n"
        f"{_list_differences(known['by'], ready)}\n"
        "resume with the hardware and versions that the run began with, or start a new run with -o; "
        "--determinism fast allows a mixture"
    )


def find_change(run_dir: RunDir, ready: WorkerReady) -> str | None:
    """Return a message if a worker's engine is not the one that the run began with, else None.

    This can only be in fast determinism: in strict the version is part of the identity.
    """
    before = next((e for e in read_events(run_dir.events) if e.get("kind") == "worker_ready"), None)
    now = f"{ready.facts.engine} {ready.facts.version}"
    if before is None or before.get("engine") == now:
        return None
    began = before.get("engine")
    return f"worker {ready.worker} is {now}; the run began with {began}: its samples are of both"


def _list_differences(before: Mapping[str, Any], ready: WorkerReady) -> str:
    now = ready.facts.describe()
    names = dict.fromkeys((*before, *now))
    lines = [
        f"  {name}: {before.get(name)} when the run began, {now.get(name)} on worker {ready.worker}"
        for name in names
        if before.get(name) != now.get(name)
    ]
    if lines:
        return "\n".join(lines)
    known = ", ".join(f"{name} {value}" for name, value in now.items())
    return f"  nothing that is recorded differs ({known}): look for a changed microcode, driver or library"


def _encode(renderer: Renderer, number: int, length: int) -> Any:
    """Return the first `length` tokens of a text that counts upwards from `number`."""
    counted = " and ".join(str(number + n) for n in range(length))
    return renderer.encode(f"{number}: {_TEXT} {counted}")[:length]
