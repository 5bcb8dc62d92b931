"""This package's answers against the model cards' own method, token by token.

    python -m benchmarks.cards_method [--prompts 64] [--max-tokens 48] [-o RESULTS.md]

Both sides read the same token ids, those of the cards' loop (format synthia-card), with the embedded
model in float32, greedily: `transformers` generates them one at a time as the cards do, this package
on vLLM's CPU engine in strict determinism. Where the sequences part, the two tokens' logits are
computed by transformers and shown: rounding decides between two that are nearly equal. Exit code 0
if at most two of 64 part, and all of those at a near tie.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parent.parent
NEAR_TIE = 0.01
"""Logits less than this apart. Those of a float32 model are equal to about 1e-4 between two ways to add."""
ALLOWED_SHARE = 2 / 64
MAX_MODEL_LEN = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Parting:
    """Where two sequences part: the tokens that come there, and their logits by transformers."""

    prompt: int
    position: int
    ours: int
    theirs: int
    ours_logit: float
    theirs_logit: float

    @property
    def is_near_tie(self) -> bool:
        """Whether rounding may have decided."""
        return abs(self.ours_logit - self.theirs_logit) < NEAR_TIE


def main() -> int:
    """Run both sides, each in a process of its own, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--side", choices=["ours", "cards", "logits"], help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        sides = {"ours": generate_ours, "cards": generate_cards, "logits": find_logits}
        sides[arguments.side](arguments.work, arguments.max_tokens)
        return 0
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        _write(work / "prompts", make_prompts(arguments.prompts))
        for side in ("ours", "cards"):
            _run_side(side, work, arguments.max_tokens)
        partings = compare(_read(work / "ours"), _read(work / "cards"))
        _write(work / "partings", partings)
        _run_side("logits", work, arguments.max_tokens)
        found = [Parting(**parting) for parting in json.loads((work / "logits.json").read_text())]
        tokens = sum(map(len, _read(work / "cards")))
    report = describe(arguments.prompts, tokens, found)
    print(report)
    if arguments.output:
        arguments.output.write_text(report + "\n", encoding="utf-8")
    is_equal = len(found) <= ALLOWED_SHARE * arguments.prompts and all(part.is_near_tie for part in found)
    return 0 if is_equal else 1


def make_prompts(count: int) -> list[list[int]]:
    """Return the token ids of `count` prompts: the questions of inputs/ under the cards' system messages."""
    from synthia_batch.core.types import Message
    from synthia_batch.models.demo import prepare_demo_model
    from synthia_batch.models.prompts.formats import SynthiaCardFormat
    from synthia_batch.models.prompts.system_messages import load_system_message
    from synthia_batch.models.prompts.tokenizer import FastTokenizer, Renderer

    renderer = Renderer(SynthiaCardFormat(), FastTokenizer(prepare_demo_model() / "tokenizer.json"))
    lines = (ROOT / "inputs" / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line)["question"] for line in lines]
    names = ("superintelligence", "synthia", "tree-of-thoughts-v3")
    systems = [load_system_message(name).text for name in names]
    asked = [(system, question) for system in systems for question in questions][:count]
    if len(asked) < count:
        raise SystemExit(f"there are {len(asked)} prompts, not {count}")
    return [list(renderer.render([Message("system", one), Message("user", other)])) for one, other in asked]


def generate_ours(work: Path, max_tokens: int) -> None:
    """Have this package's engine answer, and keep its token ids."""
    from synthia_batch.core.types import Request
    from synthia_batch.job.resolved import EngineSpec, ModelRef
    from synthia_batch.job.sampling import Sampling
    from synthia_batch.models.demo import prepare_demo_model
    from synthia_batch.workers.engine import Placement
    from synthia_batch.workers.environment import prepare_environment

    model = ModelRef(
        name="demo", path=prepare_demo_model(), repo_id=None, revision=None, trust_remote_code=False
    )
    spec = EngineSpec(
        kind="vllm",
        model=model,
        device="cpu",
        dtype="float32",
        quantization=None,
        max_model_len=MAX_MODEL_LEN,
        # Without the stop string: the cards' generate knows none, and cuts its text afterwards.
        sampling=Sampling(temperature=0.0, top_k=0, max_tokens=max_tokens),
        determinism="strict",
        tensor_parallel_size=1,
        pipeline_parallel_size=1,
        settings={},
    )
    prepare_environment(spec, Placement())

    from vllm.outputs import RequestOutput

    from synthia_batch.core.types import Outcome
    from synthia_batch.workers.vllm.engine import VllmEngine

    generated: dict[int, list[int]] = {}

    class RecordingEngine(VllmEngine):
        """The engine, and beside it the token ids, which a job has no use for."""

        def _finish(self, output: RequestOutput) -> list[Outcome]:
            generated[int(output.request_id)] = list(output.outputs[0].token_ids)
            return super()._finish(output)

    engine = RecordingEngine(spec, Placement())
    prompts = _read(work / "prompts")
    for ordinal, ids in enumerate(prompts):
        engine.add(Request(ordinal=ordinal, token_ids=ids, seed=ordinal))
    while len(generated) < len(prompts):
        engine.step()
    engine.close()
    _write(work / "ours", [generated[ordinal] for ordinal in range(len(prompts))])


def generate_cards(work: Path, max_tokens: int) -> None:
    """Have transformers answer as the cards do, one prompt at a time, but greedily and in float32."""
    import torch

    model = _load_reference()
    generated = []
    for ids in _read(work / "prompts"):
        tokens = torch.tensor([ids])
        with torch.no_grad():
            rest = model.generate(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                max_length=len(ids) + max_tokens,
                use_cache=True,
                do_sample=False,
            )
        generated.append(rest[0][len(ids) :].tolist())
    _write(work / "cards", generated)


def find_logits(work: Path, max_tokens: int) -> None:
    """Give each parting the logits of its two tokens."""
    import torch

    partings = json.loads((work / "partings.json").read_text())
    model = _load_reference() if partings else None
    prompts, theirs = _read(work / "prompts"), _read(work / "cards")
    found = []
    for prompt, position, ours, other in partings:
        ids = torch.tensor([[*prompts[prompt], *theirs[prompt][:position]]])
        with torch.no_grad():
            logits = model(ids).logits[0, -1]
        found.append(
            {
                "prompt": prompt,
                "position": position,
                "ours": ours,
                "theirs": other,
                "ours_logit": float(logits[ours]),
                "theirs_logit": float(logits[other]),
            }
        )
    (work / "logits.json").write_text(json.dumps(found))


def compare(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return prompt, position and the two tokens of each pair that parts; -1 for an end."""
    partings = []
    for prompt, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        if one != other:
            pairs = zip([*one, -1], [*other, -1], strict=False)
            position, pair = next((n, pair) for n, pair in enumerate(pairs) if pair[0] != pair[1])
            partings.append([prompt, position, *pair])
    return partings


def describe(prompts: int, tokens: int, found: Sequence[Parting]) -> str:
    """Return the result as Markdown."""
    import vllm

    from synthia_batch.core.hardware import name_cpu

    lines = [
        f"# Equal to the cards' own method, {datetime.now(UTC):%Y-%m-%d}",
        "",
        f"{prompts - len(found)} of {prompts} token sequences are equal ({tokens} tokens), greedy, float32, "
        f"SmolLM2-135M-Instruct, vLLM {vllm.__version__} against transformers' generate, one at a time.",
        f"On {name_cpu()}, {os.cpu_count()} cores. `benchmarks/cards_method.py`",
        "",
    ]
    if found:
        lines += ["| prompt | token | ours | its logit | theirs | its logit | apart |", "|---" * 7 + "|"]
    for part in found:
        apart = abs(part.ours_logit - part.theirs_logit)
        lines.append(
            f"| {part.prompt} | {part.position} | {part.ours} | {part.ours_logit:.5f} | {part.theirs} | "
            f"{part.theirs_logit:.5f} | {apart:.5f}{'' if part.is_near_tie else ' NO TIE'} |"
        )
    return "\n".join(lines)


def _load_reference():  # type: ignore[no-untyped-def]
    import torch
    from transformers import AutoModelForCausalLM

    from synthia_batch.models.demo import prepare_demo_model

    torch.set_num_threads(1)  # On a busy machine, threads that wait for each other are slower.
    return AutoModelForCausalLM.from_pretrained(prepare_demo_model(), dtype=torch.float32)


def _run_side(side: str, work: Path, max_tokens: int) -> None:
    command = [sys.executable, "-m", "benchmarks.cards_method", "--side", side, "--work", str(work)]
    done = subprocess.run(
        [*command, "--max-tokens", str(max_tokens)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    if done.returncode != 0:
        raise SystemExit(f"the side {side} failed:\n{done.stdout}\n{done.stderr}")


def _write(path: Path, value: object) -> None:
    path.with_suffix(".json").write_text(json.dumps(value))


def _read(path: Path) -> list[list[int]]:
    value: list[list[int]] = json.loads(path.with_suffix(".json").read_text())
    return value


if __name__ == "__main__":
    sys.exit(main())
