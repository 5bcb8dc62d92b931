"""Other forms of conversations, rewritten as the list of messages that they are."""

from typing import Any

from synthia_batch.inputs.records.faults import RowFault
from synthia_batch.inputs.records.strict_json import parse_json_text

PAIRS = (("human", "assistant"), ("user", "assistant"), ("input", "output"))
"""The names of question and answer in an entry that holds both, with an optional `system` before them."""


def list_items(value: Any) -> Any:
    """Return the entries of the conversation `value`, each a message; anything else is left as it is.

    A conversation is a list, or its JSON text. An entry with a question and its answer becomes two messages.

    Raises:
        RowFault: It is text, but not JSON; or a list of several lists.
    """
    if isinstance(value, str):
        value = parse_json_text(value, "messages")
    if not isinstance(value, list):
        return value
    if value and all(isinstance(item, list) for item in value):
        if len(value) > 1:
            raise RowFault(
                f"messages are {len(value)} lists, each of one turn; --turns-column asks them one by one"
            )
        value = value[0]
    return [message for item in value for message in _split_pair(item)]


def join_turns(value: Any) -> Any:
    """Return the messages of a list of turns that are lists of messages, and anything else unchanged."""
    is_nested = isinstance(value, list) and value and all(isinstance(item, list) for item in value)
    return [message for turn in value for message in turn] if is_nested else value


def alternate(value: Any, column: str) -> list[dict[str, Any]]:
    """Return the messages in `value`: texts of the user and of the assistant in turn, as UltraChat has them.

    Raises:
        RowFault: It is anything else.
    """
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise RowFault(
            f"must be a list of texts, of the user and the assistant in turn; if its entries are rows, write "
            f"each on a line: `jq -c '.{column}[]' OLD > NEW.jsonl`; if the prompts are elsewhere, name "
            "their column with --prompt-column or --messages-column"
        )
    return [
        {"role": "assistant" if number % 2 else "user", "content": text} for number, text in enumerate(value)
    ]


def _split_pair(item: Any) -> list[Any]:
    """Return the messages of an entry with a question and its answer, which may be missing or blank."""
    if not isinstance(item, dict) or "role" in item or "from" in item:
        return [item]
    pair = next(
        ((asks, answers) for asks, answers in PAIRS if isinstance(item.get(asks), str) and answers in item),
        None,
    )
    if pair is None or not item.keys() <= {"system", *pair}:
        return [item]
    asks, answers = pair
    messages = [{"role": "user", "content": item[asks]}]
    if item.get("system"):
        messages.insert(0, {"role": "system", "content": item["system"]})
    return [*messages, {"role": "assistant", "content": item[answers]}] if item[answers] else messages
