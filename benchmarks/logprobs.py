"""Do log-probabilities depend on what else is in the batch? Bit for bit, on this machine's CPU.

    python -m benchmarks.logprobs -o benchmarks/results/DATE-logprobs.md     # some ten minutes

The same job with `--logprobs` in batches of several sizes, each run compared with the first: the tokens, and
every number of the column. `--determinism fast` is measured beside it, as a contrast.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.throughput.machine import describe_machine
from synthia_batch.storage.parts.logprobs import decode_logprobs

BATCHES = (16, 1, 3, 64)
"""The first is the reference."""
LIKELIEST = 5
FILLER = "Take your time and think it through before you say anything. "
TOPICS = ("the sea", "a clock", "bread", "winter", "copper", "a bridge", "a letter", "the moon")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What a run came to beside the reference. `numbers` are those of answers whose tokens are the same."""

    name: str
    answers: int
    other_tokens: int
    numbers: int
    other_numbers: int
    largest: float

    def __str__(self) -> str:
        largest = f"{self.largest:.1e}" if self.other_numbers else "-"
        return (
            f"| {self.name} | {self.answers} | {self.other_tokens} | {self.numbers:,} | "
            f"{self.other_numbers:,} | {largest} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("-o", "--output", type=Path, required=True)
    said = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="synthia-batch-") as folder:
        work = Path(folder)
        source = _write_prompts(work, said.prompts)
        lines = [
            str(_compare(f"{mode}, batches of {batch}", _run(source, work, mode, BATCHES[0], said.max_tokens),
                         _run(source, work, mode, batch, said.max_tokens)))
            for mode in ("strict", "fast")
            for batch in BATCHES[1:]
        ]  # fmt: skip
    said.output.write_text("\n".join(_describe(said.prompts, said.max_tokens, lines)) + "\n")


def _write_prompts(work: Path, count: int) -> Path:
    path = work / "q.jsonl"
    texts = [f"{FILLER * (n % 7 * 5)}Tell me about {TOPICS[n % 8]}, part {n}." for n in range(count)]
    # Every second one greedy, in the same batches.
    records = [{"question": text, "how": {"temperature": n % 2}} for n, text in enumerate(texts)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def _run(source: Path, work: Path, mode: str, batch: int, max_tokens: int) -> list[Any]:
    out = work / f"{mode}-{batch}"
    if not out.exists():
        command = (
            "run", source, "-s", "none", "--pool", "local", "--max-tokens", max_tokens, "--determinism", mode,
            "--logprobs", LIKELIEST, "--sampling-column", "how", "--set", "model.max_model_len=1024", "--set",
            f"engine.max_num_seqs={batch}", "--set", "report=false", "-o", out,
        )  # fmt: skip
        subprocess.run([sys.executable, "-m", "synthia_batch", *map(str, command)], check=True)
    return decode_logprobs(pq.read_table(out / "data", columns=["logprobs"])["logprobs"])


def _compare(name: str, reference: Sequence[Any], other: Sequence[Any]) -> Compared:
    pairs = list(zip(reference, other, strict=True))
    same = [(one, two) for one, two in pairs if one.ids[:: one.width] == two.ids[:: two.width]]
    values = [(a, b) for one, two in same for a, b in zip(one.values, two.values, strict=True)]
    other_numbers = [abs(a - b) for a, b in values if a.hex() != b.hex()]
    return Compared(
        name=name,
        answers=len(pairs),
        other_tokens=len(pairs) - len(same),
        numbers=len(values),
        other_numbers=len(other_numbers),
        largest=max(other_numbers, default=0.0),
    )


def _describe(prompts: int, max_tokens: int, lines: Sequence[str]) -> list[str]:
    return [
        "# Log-probabilities and the batch",
        "",
        f"{date.today()}; `python -m benchmarks.logprobs`. {prompts} prompts of some 10 to 400 tokens, every "
        f"second one greedy, {max_tokens} new tokens each, the {LIKELIEST} likeliest of each place, "
        f"SmolLM2-135M in bfloat16, one thread. Compared with the same job in batches of "
        f"{BATCHES[0]}: the tokens, and of answers with equal tokens every number, by its bits.",
        "",
        ", ".join(f"{name} {value}" for name, value in describe_machine().items()),
        "",
        "| run | answers | other tokens | numbers | other numbers | largest difference |",
        "|---|---|---|---|---|---|",
        *lines,
    ]


if __name__ == "__main__":
    main()
