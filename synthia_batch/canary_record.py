"""The canary prompts of a job, and the one answer to them that all its workers must give.

The first worker's answer is kept with the run. Another worker, another machine or another night
that answers otherwise would write other bytes, and is refused before it writes any.
"""

from synthia_batch.errors import DeterminismBroken
from synthia_batch.pool.base import WorkerReady
from synthia_batch.prompts.tokenizer import Renderer
from synthia_batch.rows import Request
from synthia_batch.store.atomic import publish_bytes
from synthia_batch.store.run_dir import RunDir
from synthia_batch.store.sealed import read_sealed, seal

CANARIES = 8
CANARY_TOKENS = 12
_TEXT = "Say something worth knowing about the number"


def make_canaries(renderer: Renderer, max_model_len: int) -> tuple[Request, ...]:
    """Return the canaries, of different lengths, with ordinals below 0.

    They are plain text, which every model and template takes, cut to what the model can hold.
    """
    room = max(1, max_model_len - CANARY_TOKENS)
    prompts = (f"{_TEXT} {'and '.join([f'{n} '] * n)}" for n in range(1, CANARIES + 1))
    return tuple(
        Request(
            ordinal=-n,
            token_ids=renderer.encode(prompt)[:room],
            seed=n,
            max_tokens=CANARY_TOKENS,
        )
        for n, prompt in enumerate(prompts, start=1)
    )


def check_canary(run_dir: RunDir, ready: WorkerReady) -> None:
    """Compare a worker's answer with the run's, which it becomes if it is the first.

    Raises:
        DeterminismBroken: It is another one.
    """
    if ready.canary is None:
        return
    who = f"{ready.facts.engine} {ready.facts.version} on {ready.facts.device}"
    known = read_sealed(run_dir.canary)
    if known is None:
        publish_bytes(run_dir.canary, seal({"answer": ready.canary, "by": who}))
    elif known["answer"] != ready.canary:
        raise DeterminismBroken(
            "the engines do not answer the canary prompts alike, so their samples would not fit together:\n"
            f"  this run began with {known['by']}\n  worker {ready.worker} is {who}\n"
            "go on with the hardware and versions that it began with, or start a run of its own with -o; "
            "--determinism fast allows a mixture"
        )
