"""Converts the values of one record to a row and its hash, for every format.

A scan needs only the hash, which is computed without a Row for speed; both apply the same checks.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from json.encoder import encode_basestring
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from blake3 import blake3

from synthia_batch.core.types import Message, Row, RowSampling
from synthia_batch.inputs.base import Columns
from synthia_batch.inputs.records.conversation_forms import alternate, join_turns
from synthia_batch.inputs.records.faults import RowFault
from synthia_batch.inputs.records.message_parts import describe
from synthia_batch.inputs.records.messages import (
    check_question,
    drop_final_answers,
    parse_messages,
    parse_turns,
    pick_questions,
)
from synthia_batch.inputs.records.openai_batch import (
    parse_request,
    read_logprobs,
    read_sampling,
    read_tool_choice,
)
from synthia_batch.inputs.records.row_ids import HASH_BYTES
from synthia_batch.inputs.records.row_options import parse_sampling, parse_tools
from synthia_batch.inputs.records.shapes import add_system, parse_instruction
from synthia_batch.inputs.records.strict_json import parse_json_text

if TYPE_CHECKING:
    from synthia_batch.inputs.records.template import PromptTemplate

_T = TypeVar("_T")
OPEN_USER = Message("user", "")
"""The message of a user that the model writes."""


class Values(NamedTuple):
    """The values of a record's columns, None for a missing column.

    `text` is that of the prompt, messages or turns column.
    """

    text: Any
    system: Any
    identifier: Any
    sampling: Any = None
    tools: Any = None


class RecordParser:
    """Checks the values of records, and computes their hashes and rows.

    `final_answers` counts the conversations parsed so far that end with an answer. `unread_keys` are the
    keys of messages that were not read.
    """

    def __init__(self, columns: Columns) -> None:
        self.final_answers = 0
        self.unread_keys: set[str] = set()
        self._columns = columns
        self._parse_content: Callable[[Any], tuple[Message, ...]] = self._choose_parser()

    def hash_record(self, values: Values) -> bytes:
        """Return the 8 bytes that distinguish the record's id. Raises RowFault for an invalid value."""
        messages = self._parse_content(values.text)
        system = self._parse_system(values.system)
        self._parse_sampling(values.sampling)
        self._parse_tools(values.tools)
        if self._columns.id is None:
            return hash_content(messages, system)
        return hash_id(self._parse_id(values.identifier))

    def hash_bad(self, identifier: Any, line: int) -> bytes:
        """Return the 8 bytes that distinguish the id of a bad row."""
        row_id = self._find_bad_id(identifier, line)
        return hash_bad_line(line) if row_id is None else hash_id(row_id)

    def make_bad_row(self, fault: str, identifier: Any, *, index: int, occurrence: int, line: int) -> Row:
        """Return the row of a record with a `fault`, which fails. Its id is its own, if it has one."""
        row_id = self._find_bad_id(identifier, line)
        if row_id is None:
            row_id = f"{hash_bad_line(line).hex()}-{occurrence}"
        elif occurrence and not self._has_id(identifier):  # The same line of another file.
            row_id += f"-{occurrence}"
        return Row(index=index, id=row_id, messages=(), system=None, kept={}, line=line, fault=fault)

    def _find_bad_id(self, identifier: Any, line: int) -> str | None:
        if self._columns.id is None:
            return None
        return self._parse_id(identifier) if self._has_id(identifier) else f"bad-row-{line}"

    def _has_id(self, identifier: Any) -> bool:
        try:
            self._parse_id(identifier)
        except RowFault:
            return False
        return True

    def make_row(
        self, values: Values, *, index: int, occurrence: int, kept: Mapping[str, Any], line: int
    ) -> Row:
        """Return the row of a record. `occurrence` distinguishes records of equal content."""
        messages = self._parse_content(values.text)
        system = self._parse_system(values.system)
        if self._columns.id is None:
            row_id = f"{hash_content(messages, system).hex()}-{occurrence}"
        else:
            row_id = self._parse_id(values.identifier)
        follow_ups: tuple[str, ...] = ()
        if self._columns.turns is not None:
            first = 1 + (messages[0].role == "system")
            messages, later = messages[:first], messages[first:]
            follow_ups = tuple(message.content for message in later)
        return Row(
            index=index,
            id=row_id,
            messages=messages,
            system=system,
            kept=kept,
            line=line,
            follow_ups=follow_ups,
            sampling=self._parse_sampling(values.sampling),
            tools=self._parse_tools(values.tools),
        )

    def _choose_parser(self) -> Callable[[Any], tuple[Message, ...]]:
        if self._columns.generate_role == "user":
            return lambda _: (OPEN_USER,)
        if self._columns.template is not None:
            from synthia_batch.inputs.records.template import compile_template

            template = compile_template(self._columns.template)
            return self._parse_written(template) if self._columns.writes_messages else template.write
        if self._columns.shape is not None:
            return self._parse_shape
        if self._columns.prompt is not None:
            return self._parse_prompt
        return self._parse_messages if self._columns.messages is not None else self._parse_turns

    def _parse_written(self, template: "PromptTemplate") -> Callable[[Any], tuple[Message, ...]]:
        def parse(values: Any) -> tuple[Message, ...]:
            text = template.render(values)
            try:
                written = parse_json_text(text, "messages", subject="")
                return self._cut_answer(self._parse_conversation(written))
            except RowFault as exc:
                raise RowFault(f"what the messages template renders: {exc}") from exc

        return parse

    def _parse_shape(self, value: Any) -> tuple[Message, ...]:
        """Return the conversation in `value`: the text column's value, or several values by name."""
        columns = self._columns
        if columns.shape == "alpaca":
            return parse_instruction(value, columns.text or "")
        if columns.shape == "openai-batch":
            return self._cut_answer(parse_request(value, columns, self._parse_conversation))
        if not columns.reads:
            return self._parse_messages(value)
        messages = _parse_column(self._parse_conversation, columns.text, value.get(columns.text))
        return _parse_column(self._cut_answer, columns.text, add_system(messages, value))

    def _parse_conversation(self, value: Any) -> tuple[Message, ...]:
        """Return the messages of a conversation, without answers at its end that are regenerated."""
        if self._columns.shape == "ultrachat":
            value = alternate(value, self._columns.text or "")
        if self._columns.turns is not None:
            value = join_turns(parse_json_text(value, "messages") if isinstance(value, str) else value)
        if self._columns.turns is None and self._columns.final == "regenerate":
            value, is_cut = drop_final_answers(value)
            self.final_answers += is_cut
        return parse_messages(value, self.unread_keys)

    def _cut_answer(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """Return the part of a conversation that is asked: all of it, or its questions."""
        if self._columns.turns is not None:
            return pick_questions(messages)
        check_question(messages, self._columns.final)
        if not self._columns.message_fields and any(message.extra for message in messages):
            number = next(number for number, message in enumerate(messages, start=1) if message.extra)
            names = ", ".join(messages[number - 1].extra or ())
            raise RowFault(
                f"message {number} has {names}, which no message of the first rows has; "
                "--set input.message_fields=true keeps them in the output"
            )
        self.final_answers += messages[-1].role == "assistant"
        return messages

    def _parse_prompt(self, value: Any) -> tuple[Message, ...]:
        if type(value) is not str:
            hint = f" (--messages-column {self._columns.prompt})" if isinstance(value, list) else ""
            raise RowFault(f"column {self._columns.prompt!r} must be a string, not {describe(value)}{hint}")
        if not value or value.isspace():
            raise RowFault(f"column {self._columns.prompt!r} is blank")
        return (Message("user", value),)

    def _parse_messages(self, value: Any) -> tuple[Message, ...]:
        messages = _parse_column(self._parse_conversation, self._columns.text, value)
        return _parse_column(self._cut_answer, self._columns.text, messages)

    def _parse_turns(self, value: Any) -> tuple[Message, ...]:
        return _parse_column(parse_turns, self._columns.turns, value)

    def _parse_system(self, value: Any) -> str | None:
        if value is None:
            return None
        if type(value) is not str:
            raise RowFault(f"column {self._columns.system!r} must be a string, not {describe(value)}")
        return None if not value or value.isspace() else value

    def _parse_sampling(self, value: Any) -> RowSampling | None:
        if self._columns.sampling is None:
            return None
        is_request = self._columns.shape == "openai-batch"
        parse = self._parse_request_sampling if is_request else parse_sampling
        return _parse_column(parse, self._columns.sampling, value)

    def _parse_request_sampling(self, body: Any) -> RowSampling:
        sampling = parse_sampling(read_sampling(body))
        choice, tool = read_tool_choice(body, self._columns)
        logprobs = read_logprobs(body, self._columns)
        return dataclasses.replace(sampling, logprobs=logprobs, tool_choice=choice, tool=tool)

    def _parse_tools(self, value: Any) -> tuple[Mapping[str, Any], ...]:
        if self._columns.shape == "openai-batch" and isinstance(value, dict):
            value = value.get("tools")
        elif self._columns.tools is None:
            return ()
        return _parse_column(parse_tools, self._columns.tools, value)

    def _parse_id(self, value: Any) -> str:
        if type(value) is int:
            return str(value)
        if type(value) is not str:
            raise RowFault(
                f"column {self._columns.id!r} must be a string or an integer, not {describe(value)}"
            )
        if not value or value.isspace():
            raise RowFault(f"column {self._columns.id!r} is blank; every row needs an id")
        return value


def hash_content(messages: tuple[Message, ...], system: str | None) -> bytes:
    """Return 8 bytes of the BLAKE3 of the canonical JSON of {"messages": ..., "system": ...}.

    Formatted by hand because it is computed twice for every row: a fifth of the encoder's time.
    """
    turns = ",".join(
        [
            f'{{"content":{encode_basestring(message.content)},"role":"{message.role}"'
            f"{'' if message.extra is None else _encode_extra(message.extra)}}}"
            for message in messages
        ]
    )
    own = "null" if system is None else encode_basestring(system)
    return blake3(f'{{"messages":[{turns}],"system":{own}}}'.encode()).digest(length=HASH_BYTES)


def _encode_extra(extra: Mapping[str, Any]) -> str:
    return f',"extra":{json.dumps(extra, ensure_ascii=False, sort_keys=True)}'


def _parse_column(parse: Callable[[Any], _T], column: str | None, value: Any) -> _T:
    """Return `parse(value)`; the message of a RowFault names the column."""
    try:
        return parse(value)
    except RowFault as exc:
        raise RowFault(f"column {column!r}: {exc}") from exc


def hash_bad_line(line: int) -> bytes:
    """Return 8 bytes for a row without content, by its line."""
    return blake3(b"bad row\0%d" % line).digest(length=HASH_BYTES)


def hash_id(row_id: str) -> bytes:
    """Return 8 bytes of the BLAKE3 of an id."""
    return blake3(row_id.encode()).digest(length=HASH_BYTES)
