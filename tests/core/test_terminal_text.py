"""Only printable characters reach a terminal, through one function."""

import ast
import io
import json
import sys
from pathlib import Path

import pytest

from synthia_batch.core.formatting import encode_json
from synthia_batch.core.terminal import show

PACKAGE = Path(__file__).parent.parent.parent / "synthia_batch"
BAD = "a\x1b[31m\x07\x9b\u202e\u2066\U000e0001\x7f\r"


def test_unprintable_characters_are_escaped() -> None:
    stream = io.StringIO()
    show(f"{BAD}\tb\nc \u00e9\u4e2d", file=stream)
    expected = "a\\x1b[31m\\x07\\x9b\\u202e\\u2066\\U000e0001\\x7f\\r\tb\nc \u00e9\u4e2d\n"
    assert stream.getvalue() == expected


def test_json_stays_the_same_value() -> None:
    text = encode_json({"a": f"{BAD}\ud800\u00e9\u4e2d\U0001f600"}, indent=1)
    assert text.replace("\n", "").isprintable()
    assert json.loads(text) == {"a": f"{BAD}\ud800\u00e9\u4e2d\U0001f600"}
    assert "\u00e9\u4e2d\U0001f600" in text


def test_messages_are_masked_and_results_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    show("https://h/x?y=z", file=sys.stderr)
    show("https://h/x?y=z")
    found = capsys.readouterr()
    assert (found.err, found.out) == ("https://h/x?...\n", "https://h/x?y=z\n")


def test_everything_is_printed_in_the_one_place() -> None:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                found.add(path.relative_to(PACKAGE).as_posix())
    assert found == {"core/terminal.py", "models/gguf_convert.py"}, "the latter speaks to its parent process"
