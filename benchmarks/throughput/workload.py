"""The job that every side does: the same prompts, the same seeds, the same sampling."""

import json
import pickle
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.throughput.process import make_empty
from synthia_batch.core.types import Message
from synthia_batch.inputs import open_source
from synthia_batch.job.loading.merge import Layer
from synthia_batch.job.plan import expand_row
from synthia_batch.job.resolved import EngineSpec
from synthia_batch.models.demo import prepare_demo_model
from synthia_batch.models.prompts.tokenizer import open_renderer
from synthia_batch.runner.resolve import resolve_job, select_rows

SYSTEM = "You are a helpful assistant. Answer in one or two sentences."
SEED = 20261121
_QUESTIONS = Path(__file__).resolve().parents[2] / "inputs" / "questions.jsonl"
_LONGEST_QUESTION = 150
"""Characters. Some of inputs/ bring a whole page of context: with them the job would be mostly prefill."""
LEAST_TOKENS = 8
"""The shortest limit of a row where each has its own; the longest is the job's."""
LIMITS_COLUMN = "limits"

MODEL_SHAPES: dict[str, dict[str, int]] = {
    "llama-2-7b-dummy": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
    },
    # To try the path of dummy weights on a small machine.
    "tiny-dummy": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One row of the job: its text, its conversation, and both as every engine gets them."""

    id: str
    question: str
    messages: tuple[Message, ...]
    token_ids: tuple[int, ...]
    seed: int
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The job. `input` is its file; `engine` is as synthia-batch resolves it in strict determinism.

    `model` is the model's directory; its weights are random where `is_dummy`. `max_tokens` is the limit of
    every row, or where lengths are mixed, which is for synthia-batch and the bare actors, the longest.
    """

    prompts: tuple[Prompt, ...]
    input: Path
    max_tokens: int
    is_mixed: bool
    model: Path
    is_dummy: bool
    workers: int
    engine: EngineSpec

    def take(self, count: int) -> "Workload":
        """Return the job with its first `count` prompts only."""
        return replace(self, prompts=self.prompts[:count])

    def save(self, path: Path) -> Path:
        """Write the job for the processes of the sides; returns `path`."""
        path.write_bytes(pickle.dumps(self))
        return path

    @staticmethod
    def load(path: Path) -> "Workload":
        """Read what `save` wrote."""
        workload: Workload = pickle.loads(path.read_bytes())
        return workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is to be measured, as the command line says it."""

    prompts: int
    max_tokens: int
    model_shape: str | None
    workers: int
    is_mixed: bool = False


def make_workload(wish: Wish, directory: Path) -> Workload:
    """Return the job of `wish`; its input file and a dummy model are written to `directory`."""
    model = (
        make_dummy_model(wish.model_shape, directory / "model") if wish.model_shape else prepare_demo_model()
    )
    limits = draw_limits(wish.prompts, wish.max_tokens) if wish.is_mixed else None
    path = write_questions(directory / "questions.jsonl", wish.prompts, limits)
    values: dict[str, Any] = {
        "input": {"path": path, "id_column": "id", "sampling_column": LIMITS_COLUMN if limits else None},
        "model": {"name": str(model)},
        "system": [SYSTEM],
        "sampling": {"max_tokens": wish.max_tokens},
        "seed": SEED,
        "engine": {"load_format": "dummy"} if wish.model_shape else {},
    }
    job = resolve_job([Layer(origin="benchmark", values=values)])
    renderer = open_renderer(job.prompt)
    source, scratch = open_source(path), make_empty(directory / "scan")
    rows = source.read_rows(source.scan(select_rows(job.declared, None), scratch), 0, wish.prompts)
    samples = [sample for row in rows for sample in expand_row(row, job.plan)]
    prompts = tuple(
        Prompt(
            id=sample.row.id,
            question=sample.row.messages[-1].content,
            messages=sample.messages,
            token_ids=tuple(renderer.render(sample.messages)),
            seed=sample.seed,
            max_tokens=wish.max_tokens if limits is None else limits[sample.row.index],
        )
        for sample in samples
    )
    return Workload(
        prompts=prompts,
        input=path,
        max_tokens=wish.max_tokens,
        is_mixed=wish.is_mixed,
        model=model,
        is_dummy=wish.model_shape is not None,
        workers=wish.workers,
        engine=job.engine,
    )


def draw_limits(count: int, longest: int) -> list[int]:
    """Return `count` limits from LEAST_TOKENS to `longest`, always the same."""
    draw = random.Random(SEED)
    return [draw.randint(LEAST_TOKENS, longest) for _ in range(count)]


def write_questions(path: Path, count: int, limits: Sequence[int] | None) -> Path:
    """Write `count` different questions: the short ones of inputs/ again and again, each with its number.

    With `limits` each has its own in LIMITS_COLUMN.
    """
    lines = _QUESTIONS.read_text(encoding="utf-8").splitlines()
    questions = [q for line in lines if len(q := json.loads(line)["question"]) <= _LONGEST_QUESTION]
    with path.open("w", encoding="utf-8") as file:
        for n in range(count):
            row: dict[str, Any] = {
                "id": f"q{n:05}",
                "question": f"(Question {n + 1}.) {questions[n % len(questions)]}",
            }
            if limits is not None:
                row[LIMITS_COLUMN] = {"max_tokens": limits[n]}
            file.write(json.dumps(row) + "\n")
    return path


def make_dummy_model(shape: str, directory: Path) -> Path:
    """Write a model of Llama's architecture without weights, with the embedded model's tokenizer.

    The vocabulary is the tokenizer's, 49,152 tokens where Llama 2 has 32,000.
    """
    source = prepare_demo_model()
    directory.mkdir(parents=True, exist_ok=True)
    known = json.loads((source / "config.json").read_text())
    kept = {name: known[name] for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
        **kept,
        **MODEL_SHAPES[shape],
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    for file in source.iterdir():
        if file.name.startswith(("tokenizer", "special_tokens", "chat_template", "generation_config")):
            (directory / file.name).write_bytes(file.read_bytes())
    # Nobody reads it, and every side looks for one.
    (directory / "model.safetensors").touch()
    return directory
