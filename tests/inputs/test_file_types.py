"""The table of input formats."""

from pathlib import Path

import pytest

from synthia_batch.inputs.fetch.file_types import KINDS, InputKind, choose_row_files, get_kind, split_name
from synthia_batch.inputs.fetch.sniff import sniff_file


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_kind_has_a_reader_or_is_rewritten_for_one(kind: InputKind) -> None:
    if kind.reader is not None:
        assert callable(kind.load_reader())
        assert kind.normalizer is None
        return
    assert callable(kind.load_normalizer())
    rows_kind = split_name(kind.rows_name).kind
    assert rows_kind is not None
    assert rows_kind.reader is not None


def test_names_and_suffixes_are_of_one_kind_each() -> None:
    suffixes = [suffix for kind in KINDS for suffix in kind.suffixes]
    assert len(set(suffixes)) == len(suffixes)
    assert [get_kind(kind.name) for kind in KINDS] == list(KINDS)


def test_content_takes_precedence_over_the_name(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"PAR1....")
    assert sniff_file(path, path).kind.name == "parquet"


@pytest.mark.parametrize(
    ("text", "kind"),
    [(b'{"a": 1}', "jsonl"), (b'\xef\xbb\xbf\n [{"a": 1}]', "json"), (b"a,b\n1,2\n", "csv"), (b" \n", "csv")],
)
def test_a_text_without_a_name_gets_its_likely_kind(tmp_path: Path, text: bytes, kind: str) -> None:
    path = tmp_path / "piped"
    path.write_bytes(text)
    assert sniff_file(path, "stdin", guess=True).kind.name == kind


@pytest.mark.parametrize(
    ("names", "rows", "ignored"),
    [
        (
            ["b.jsonl", "a/c.csv.gz", "d.json", "README.md"],
            ["a/c.csv.gz", "b.jsonl"],
            ["README.md", "d.json"],
        ),
        (["b.json", "a.json.gz", "state.json"], ["a.json.gz", "b.json"], ["state.json"]),
        ([".a.jsonl", ".git/b.jsonl"], [], []),
        (["a.json", "no.json"], ["a.json"], ["no.json"]),
    ],
)
def test_a_directory_gives_the_kinds_of_its_lowest_rank(
    names: list[str], rows: list[str], ignored: list[str]
) -> None:
    found = choose_row_files(names, lambda name: name != "no.json")
    assert (list(found.rows), list(found.ignored)) == (rows, ignored)


def test_what_a_directory_leaves_out_is_named_and_long_lists_are_cut() -> None:
    found = choose_row_files(["a.jsonl", *(f"{number}.md" for number in range(8))])
    assert found.describe_ignored() == "not read: 0.md, 1.md, 2.md, 3.md, 4.md and 3 more"
    assert choose_row_files(["a.jsonl"]).describe_ignored() == ""
