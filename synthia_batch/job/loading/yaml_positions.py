"""YAML with the place of every key and value, so that errors in a job file name line and column.

Read as YAML 1.2: `no` is text, `7:30` is text, `1_000` is a number. For a key that takes text, a YAML
number or date is text as well, as with --set.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, StreamMark, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from synthia_batch.core.errors import UsageError
from synthia_batch.job.dotted import drop_numbers, spell_key
from synthia_batch.job.keys import wants_text
from synthia_batch.job.loading.layer import Place

MOST_VALUES = 10_000
"""More than this is not a job file: aliases of aliases, or data."""
_STAGE = re.compile(r"^stages\.\d+\.")
"""Before a key of a pipeline's stage, which is that of a job."""
_NULL = "tag:yaml.org,2002:null"
_STRING = "tag:yaml.org,2002:str"
_DATE = "tag:yaml.org,2002:timestamp"
_SCALARS = {_NULL, _STRING, _DATE, *(f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float"))}
_AMBIGUOUS = re.compile(r"[-+]?0[0-9_]+")
_HINTS = {
    "\t": "indent with spaces, not with tabs",
    "@": "quote it, as in '@persona.txt'",
    "`": "quote the text that begins with it",
    "%": "quote the text that begins with it",
    "*": "quote the text that begins with it; * marks an alias in YAML",
    "{": "quote a text that has { or } in it, as in '${TOKEN}'",
    "}": "quote a text that has { or } in it, as in '${TOKEN}'",
    ":": "put a space behind a key's colon, quote a text that has ': ' in it, indent a section's keys alike",
}
"""Remedies by the character at which YAML parsing failed."""


_PLAIN = {
    "mapping values are not allowed": "a key cannot stand here; put a space behind a key's colon, quote a "
    "text that has ': ' in it, indent a section's keys alike",
    "expected <block end>": "the line is not indented like those before it; indent the keys of a section "
    "alike, and the keys of the file not at all",
    "could not find expected ':'": "a key without a colon; write `key: value`, and quote a longer text",
}
"""What the parser's own words mean, by how they begin, and the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkedYaml:
    """A file's values, their places by dotted key with list entries by number, and its faults."""

    values: dict[str, Any]
    places: Mapping[str, Place]
    faults: tuple[str, ...]


def read_marked(text: str, file: str) -> MarkedYaml:
    """Return the mapping in `text`, with its places; `file` is for the messages.

    Raises:
        UsageError: It is not YAML, or not a mapping.
    """
    root = _compose(text, file)
    if root is None:
        raise UsageError(f"{file}: the file is empty; `synthia-batch init INPUT -o {file} --force` fills it")
    if not isinstance(root, MappingNode):
        raise UsageError(
            f"{_point(file, root.start_mark)}: a job file is a mapping of keys "
            "to values, such as `name: quickstart`; see jobs/quickstart.yaml"
        )
    reader = _Reader(file=file)
    try:
        values = reader.read(root, "") or {}  # None if the root has a tag, which is a fault
    except RecursionError:
        raise UsageError(f"{file}: nested too deeply for a job file; see jobs/quickstart.yaml") from None
    return MarkedYaml(values=values, places=reader.places, faults=tuple(reader.faults))


def _compose(text: str, file: str) -> Node | None:
    yaml = YAML(typ="safe", pure=True)
    if found := re.search(r"^%YAML\s+1\.[01]\b", text, re.MULTILINE):
        line = text.count("\n", 0, found.start()) + 1
        raise UsageError(f"{file}:{line}:1: job files are read as YAML 1.2; remove the line {found[0]}")
    try:
        node: Node | None = yaml.compose(StringIO(text))
    except MarkedYAMLError as exc:
        raise UsageError(_explain(exc, text, file)) from exc
    except YAMLError as exc:
        what = " ".join(str(exc).split())
        raise UsageError(f"{file}: not valid YAML: {what}; remove that character") from exc
    except RecursionError:
        raise UsageError(f"{file}: nested too deeply for a job file; see jobs/quickstart.yaml") from None
    return node


def _explain(exc: MarkedYAMLError, text: str, file: str) -> str:
    mark = exc.problem_mark or exc.context_mark
    if mark is None:
        return f"{file}: not valid YAML: {exc.problem}; fix it and run again"
    lines = text.splitlines()
    at = lines[mark.line][mark.column : mark.column + 1] if mark.line < len(lines) else ""
    begun = ""
    if not at and exc.context_mark is not None:
        # Only at the end of the file does YAML notice an unclosed quote or bracket far above.
        begun = f" in what begins at line {exc.context_mark.line + 1}"
    hint = _HINTS.get(at, "close what was opened, a quote or a bracket" if begun else "fix it and run again")
    what = str(exc.problem).replace("\t", "\\t")
    plain = next((words for start, words in _PLAIN.items() if what.startswith(start)), None)
    if plain is not None:
        return f"{_point(file, mark)}: not valid YAML: {plain}"
    return f"{_point(file, mark)}: not valid YAML: {what}{begun}; {hint}"


@dataclass(kw_only=True)
class _Reader:
    """Turns nodes into values and collects places and faults."""

    file: str
    places: dict[str, Place] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    _open: list[int] = field(default_factory=list)
    _count: int = 0
    _constructor: Any = field(default_factory=lambda: YAML(typ="safe", pure=True).constructor)

    def read(self, node: Node, key: str) -> Any:
        self._count += 1
        if self._count > MOST_VALUES:
            raise UsageError(
                f"{self.file}: more than {MOST_VALUES:,} values with its aliases; a job file has a few dozen"
            )
        if id(node) in self._open:
            self._fault(node.start_mark, key, "the value contains itself; write it out instead of the alias")
            return None
        self._open.append(id(node))
        try:
            return self._read_kind(node, key)
        finally:
            self._open.pop()

    def _read_kind(self, node: Node, key: str) -> Any:
        if isinstance(node, ScalarNode):
            return self._read_scalar(node, key)
        if isinstance(node, SequenceNode) and str(node.tag).endswith(":seq"):
            return [self._read_entry(entry, f"{key}.{number}") for number, entry in enumerate(node.value)]
        if isinstance(node, MappingNode) and str(node.tag).endswith(":map"):
            return dict(self._read_pairs(node, key))
        self._fault(node.start_mark, key, f"the tag {_name_tag(node)} is not supported; remove it")
        return None

    def _read_entry(self, node: Node, key: str) -> Any:
        self._note(key, node.start_mark, node.start_mark)
        return self.read(node, key)

    def _read_pairs(self, node: MappingNode, parent: str) -> Iterator[tuple[str, Any]]:
        seen: dict[str, StreamMark] = {}
        for key_node, value_node in node.value:
            mark = key_node.start_mark
            if not isinstance(key_node, ScalarNode):
                self._fault(mark, parent, "a key is one word; write `key: value`")
                continue
            name = key_node.value
            key = f"{parent}.{name}" if parent else name
            if name == "<<":
                self._fault(mark, key, "merge keys are not supported; write the keys out")
                continue
            if name in seen:
                first = seen[name].line + 1
                self._fault(mark, key, f"set a second time, first in line {first}; remove one of the two")
                continue
            seen[name] = mark
            is_empty = isinstance(value_node, ScalarNode) and value_node.tag == _NULL
            value_mark = mark if is_empty and not value_node.value else value_node.start_mark
            self._note(key, mark, value_mark)
            faults = len(self.faults)
            value = self.read(value_node, key)
            if value is not None or len(self.faults) == faults:  # Otherwise it is a fault.
                yield name, value

    def _read_scalar(self, node: ScalarNode, key: str) -> Any:
        text: str = node.value
        if node.tag not in _SCALARS:
            self._fault(node.start_mark, key, f"the tag {_name_tag(node)} is not supported; remove it")
            return None
        name = drop_numbers(_STAGE.sub("", key))
        is_text = node.tag in (_STRING, _DATE) or (node.tag != _NULL and wants_text(name))
        if is_text:
            return text
        if node.tag.endswith(":int") and _AMBIGUOUS.fullmatch(text):
            plain = text.replace("_", "").lstrip("+-0") or "0"
            self._fault(node.start_mark, key, f"{text} may be meant as octal; write {plain}, or 0o{plain}")
            return None
        return self._constructor.construct_object(node)

    def _note(self, key: str, key_mark: StreamMark, value_mark: StreamMark) -> None:
        self.places[key] = Place(
            origin=f"{self.file}:{key_mark.line + 1}",
            at_key=_point(self.file, key_mark),
            at_value=_point(self.file, value_mark),
        )

    def _fault(self, mark: StreamMark, key: str, what: str) -> None:
        self.faults.append(f"{_point(self.file, mark)}: {spell_key(key) + ': ' if key else ''}{what}")


def _name_tag(node: Node) -> str:
    return str(node.tag).replace("tag:yaml.org,2002:", "!!")


def _point(file: str, mark: StreamMark) -> str:
    """Return file:line:column, both counted from 1."""
    return f"{file}:{mark.line + 1}:{mark.column + 1}"
