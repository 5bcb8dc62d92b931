"""The model cards in tests/cards, and their Python loop as it stands there."""

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CARDS = Path(__file__).parent / "cards"
WITH_LOOP = ("synthia-70b-v1.1", "synthia-70b", "synthia-7b", "synthia-v3-11b", "synthia-70b-gguf")
"""The cards that show one; the AWQ card has its maker's example instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What the loop fed to the model, turn by turn, and the answers that it kept."""

    prompts: tuple[str, ...]
    answers: tuple[str, ...]


def read_card(name: str) -> str:
    return (CARDS / f"{name}.md").read_text(encoding="utf-8")


def play_loop(name: str, inputs: Sequence[str], outputs: Sequence[str]) -> Played:
    """Run the card's own lines on user `inputs`, where the model generates `outputs`."""
    card = read_card(name)
    start = re.search(r"^conversation = f.*$", card, re.MULTILINE)
    assert start is not None
    body = re.search(r"^while True:\n(.*?)    json_data", card, re.MULTILINE | re.DOTALL)
    assert body is not None
    cut = re.search(r"^    (answer = string\.split.*)$", card, re.MULTILINE)
    assert cut is not None
    prompts: list[str] = []
    answers: list[str] = []
    generated = iter(outputs)

    def generate_text(prompt: str) -> str:
        prompts.append(prompt)
        names = {"string": next(generated)}
        exec(cut[1], names)
        answers.append(names["answer"])
        return names["answer"]

    typed = iter(inputs)
    names = {"generate_text": generate_text, "input": lambda prompt: next(typed), "print": lambda text: None}
    exec(start[0], names)
    for _ in inputs:
        exec(textwrap.dedent(body[1]), names)
    return Played(prompts=tuple(prompts), answers=tuple(answers))


def read_prompt_block(name: str) -> str:
    """Return the card's block that shows the prompt format, up to its ASSISTANT:."""
    block = re.search(r"```\n(SYSTEM: .*?\nASSISTANT:)\n", read_card(name), re.DOTALL)
    assert block is not None, f"the card {name} shows no prompt format"
    return block[1]
