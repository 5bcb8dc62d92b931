"""Whatever stands in a job file: it is read as it is meant, or refused with its place."""

import json
from contextlib import suppress
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from synthia_batch.errors import UsageError
from synthia_batch.job.loading.merge import Layer, merge_layers
from synthia_batch.job.loading.yaml_positions import read_marked
from synthia_batch.operations.init import quote

NAMES = st.sampled_from(["input", "sampling", "seed", "system", "a", "<<", "1", "null", "stop"])
# JSON escapes what lies beyond in two halves, which YAML takes for two characters.
TEXTS = st.text(st.characters(max_codepoint=0xD7FF), min_size=1, max_size=20).filter(
    lambda text: text != "<<"
)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), FLOATS, TEXTS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
)
YAML_SOUP = st.lists(
    st.sampled_from(
        [*"abc01.:-?[]{},&*!|>'\"#%@`~\\", " ", "  ", "\n", "\n  ", ": ", "- ", "<<: ", "&a ", "*a", "!!set ",
         "---\n", "input", "sampling", "${A}", "010", "1e5", "\t", "é", "\x00", "\ufeff", "null"]
    ),
    max_size=40,
).map("".join)  # fmt: skip


@given(st.one_of(YAML_SOUP, st.text()))
@settings(max_examples=400, deadline=None)
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        marked = read_marked(text, "x.yaml")
    except UsageError as exc:
        refuse_without_place(exc)
        return
    assert all(fault.startswith("x.yaml:") for fault in marked.faults)
    layer = Layer(origin="x", values=marked.values, places=marked.places, faults=marked.faults)
    with suppress(UsageError):
        merge_layers([layer])


def refuse_without_place(error: UsageError) -> None:
    assert str(error).startswith("x.yaml:"), error


@given(st.dictionaries(TEXTS, VALUES, max_size=4))
@settings(max_examples=300, deadline=None)
def test_json_is_read_as_json_reads_it(said: dict[str, Any]) -> None:
    marked = read_marked(json.dumps({"engine": said}), "x.yaml")  # of which no key wants text
    assert marked.faults == ()
    assert marked.values == {"engine": said}


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_a_drafted_file_says_any_name(name: str) -> None:
    if any(0xD800 <= ord(character) < 0xE000 for character in name):
        return  # A half of a pair is no text.
    assert (
        read_marked(f"input: {{prompt_column: {quote(name)}}}", "x").values["input"]["prompt_column"] == name
    )


@given(NAMES, NAMES)
@settings(max_examples=60, deadline=None)
def test_every_key_is_told_where_it_stands(first: str, second: str) -> None:
    marked = read_marked(f"# A job\nengine:\n  {first}: 1\n\n  {second}: 2\n", "x.yaml")
    told = [place.at_key for place in marked.places.values()] + [fault[:10] for fault in marked.faults]
    assert "x.yaml:3:3" in [text[:10] for text in told]
    assert "x.yaml:5:3" in [text[:10] for text in told]
