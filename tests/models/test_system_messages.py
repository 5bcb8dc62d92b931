"""The library of system messages, and the ways to name one."""

from pathlib import Path

import pytest

from synthia_batch.errors import UsageError
from synthia_batch.job.plan import ROW_SYSTEM
from synthia_batch.models.prompts import system_messages as library
from synthia_batch.models.prompts.system_messages import load_system_message, select_system_message
from synthia_batch.runner.resolve import SYSTEM_COLUMN

SYNTHIA = (
    "You are Synthia. As a an AI intelligence, give helpful, detailed, accurate, uncensored "
    "responses to the user's input. Provide answers factually."
)
TREE_OF_THOUGHTS = (
    "Elaborate on the topic using a Tree of Thoughts and backtrack when necessary to construct a "
    "clear, cohesive Chain of Thought reasoning"
)
CARD_TEXTS = {
    "synthia": SYNTHIA,
    "tree-of-thoughts": TREE_OF_THOUGHTS,
    "tree-of-thoughts-v3": f"{TREE_OF_THOUGHTS}. Always answer without hesitation.",
    "superintelligence": (
        "As a an AI superintelligence, give helpful, detailed, accurate, uncensored responses to "
        "the user's input. Provide answers factually."
    ),
    "none": "",
}


def test_the_library_holds_the_texts_of_the_cards_to_the_letter() -> None:
    assert list(library._load_index()) == list(CARD_TEXTS)
    assert {name: load_system_message(name).text for name in CARD_TEXTS} == CARD_TEXTS


def test_every_text_of_the_library_names_its_public_card() -> None:
    for message in map(load_system_message, CARD_TEXTS):
        if message.name != "none":
            assert message.source.startswith("https://huggingface.co/migtissera/Synthia-")


def test_a_single_word_is_a_name_of_the_library() -> None:
    assert select_system_message("synthia") == load_system_message("synthia")
    assert select_system_message("none").text == ""


@pytest.mark.parametrize(
    ("slip", "meant"),
    [("sinthia", "synthia"), ("Synthia", "synthia"), ("tree-of-thought", "tree-of-thoughts")],
)
def test_a_slip_in_a_name_is_refused_with_what_was_meant(slip: str, meant: str) -> None:
    with pytest.raises(UsageError, match=rf"did you mean {meant}.*text:{slip}"):
        select_system_message(slip)


def test_a_name_cannot_leave_the_library() -> None:
    with pytest.raises(UsageError):
        load_system_message("../library/synthia")


def test_other_text_is_taken_literally_and_named_by_its_digest() -> None:
    message = select_system_message("Answer in French.")
    assert message.text == "Answer in French."
    assert message.name == "text-978896f0"


def test_a_prefix_forces_literal_text() -> None:
    assert select_system_message("text:synthia").text == "synthia"
    assert select_system_message("text:@you").text == "@you"
    assert select_system_message("text:Be brief.") == select_system_message("Be brief.")


@pytest.mark.parametrize("spec", ["", "  ", "text:", "text:\n"])
def test_empty_text_is_refused_and_none_is_named(spec: str) -> None:
    with pytest.raises(UsageError, match="none"):
        select_system_message(spec)


def test_text_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(UsageError, match="not UTF-8"):
        select_system_message("caf\udce9 au lait")


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_a_file_gives_its_text_without_the_final_newline(tmp_path: Path, ending: str) -> None:
    path = tmp_path / "pirate.txt"
    path.write_bytes(f'Talk like a pirate.\n\nAlways – "ahoy".{ending}'.encode())
    message = select_system_message(f"@{path}")
    assert (message.name, message.source) == ("pirate", str(path))
    assert message.text == 'Talk like a pirate.\n\nAlways – "ahoy".'


@pytest.mark.parametrize("stem", [*CARD_TEXTS, "row", "column"])
def test_a_file_cannot_claim_a_name_that_means_something_else(tmp_path: Path, stem: str) -> None:
    (tmp_path / f"{stem}.txt").write_text("You are no Synthia.", encoding="utf-8")
    message = select_system_message(f"@{stem}.txt", folder=tmp_path)
    assert (message.name, message.text) == (f"file-{stem}", "You are no Synthia.")


def test_the_reserved_names_are_those_that_rows_get() -> None:
    assert set(library._NAMES_OF_ROWS) == {ROW_SYSTEM, SYSTEM_COLUMN}


def test_a_relative_file_is_looked_for_in_the_folder_given(tmp_path: Path) -> None:
    (tmp_path / "brief.txt").write_text("Be brief.", encoding="utf-8")
    assert select_system_message("@brief.txt", folder=tmp_path).text == "Be brief."


def test_the_mark_that_some_editors_begin_a_file_with_is_no_part_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "marked.txt").write_text("Be brief.", encoding="utf-8-sig")
    assert select_system_message("@marked.txt", folder=tmp_path).text == "Be brief."


@pytest.mark.parametrize(
    ("content", "fault"),
    [(None, "No such file"), (b"", "empty"), (b"\n \n", "empty"), (b"caf\xe9", "not UTF-8")],
)
def test_a_file_that_cannot_be_used_is_refused_by_name(
    tmp_path: Path, content: bytes | None, fault: str
) -> None:
    path = tmp_path / "system.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=rf"system\.txt.*{fault}"):
        select_system_message(f"@{path}")
