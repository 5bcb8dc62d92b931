"""Converts pairs to records for programs that train on preferences. Pure."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from synthia_batch.results.export.turns import list_messages, list_spoken

if TYPE_CHECKING:  # it loads Jinja, and --help lists the formats
    from synthia_batch.results.export.pairs import Pair


def to_preference(pairs: Iterable["Pair"]) -> Iterator[dict[str, Any]]:
    """Yield `prompt`, `chosen` and `rejected` as TRL reads conversations, and the scores."""
    for pair in pairs:
        yield {
            "prompt": list_messages(pair.chosen.prompt),
            "chosen": list_messages([pair.chosen.message]),
            "rejected": list_messages([pair.rejected.message]),
            "score_chosen": pair.chosen.score,
            "score_rejected": pair.rejected.score,
        }


def to_preference_messages(pairs: Iterable["Pair"]) -> Iterator[dict[str, Any]]:
    """Yield `messages`, and `chosen` and `rejected` as a message each: Axolotl's chat_template.default."""
    for pair in pairs:
        yield {
            "messages": list_messages(pair.chosen.prompt),
            "chosen": pair.chosen.message.to_dict(),
            "rejected": pair.rejected.message.to_dict(),
        }


def to_preference_sharegpt(pairs: Iterable["Pair"]) -> Iterator[dict[str, Any]]:
    """Yield `conversations`, and `chosen` and `rejected` as a turn each: LLaMA-Factory's ranking form."""
    for pair in pairs:
        yield {
            "conversations": [spoken for turn in pair.chosen.prompt for spoken in list_spoken(turn)],
            "chosen": {"from": "gpt", "value": pair.chosen.message.content},
            "rejected": {"from": "gpt", "value": pair.rejected.message.content},
        }
