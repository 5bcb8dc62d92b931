"""What an answer's text shows: pure functions, tried on texts of which everyone can tell."""

import pytest

from synthia_batch.results.quality.measures import (
    COMPRESSION_RATIO,
    REPEATED_SHARE,
    TAIL_BYTES,
    assess_answer,
    digest_answer,
    looks_like_refusal,
    measure_compression,
    measure_repeated_share,
)

PROSE = (
    "Ice floats because water is densest at four degrees. As a lake cools, its surface freezes first, and "
    "the ice keeps what lies beneath from the wind. Fish spend the winter down there, slow and patient. If "
    "ice sank, lakes would fill with it from the bottom, and little of them would thaw before the autumn. "
    "Most liquids shrink as they freeze; that this one does not is the work of hydrogen bonds, which hold "
    "the molecules of a crystal further apart than they would be if they could tumble past each other."
)


def test_prose_is_neither_empty_nor_repetitive_nor_a_refusal() -> None:
    found = assess_answer(PROSE)
    assert (found.is_empty, found.is_repetitive, found.is_refusal) == (False, False, False)
    assert found.repeated_share == 0.0
    assert 1 < found.compression_ratio < 2.2


@pytest.mark.parametrize("text", ["", " ", "\n\t \u3000"])
def test_nothing_but_space_is_empty(text: str) -> None:
    found = assess_answer(text)
    assert found.is_empty
    assert not found.is_repetitive


def test_the_repeated_share_counts_letters_once_and_leaves_the_first_time_out() -> None:
    five = "one two three four five"  # 19 letters
    assert measure_repeated_share(f"{five} {five}") == 19 / 38
    assert measure_repeated_share(f"{five} and {five}") == 19 / 41
    # Nine words of one kind hold five 5-grams; the second is repeated, and the search goes on after it.
    assert measure_repeated_share("la " * 9) == 5 / 9
    assert measure_repeated_share("one two three four") == 0.0


def test_an_answer_that_loops_is_repetitive_by_either_measure() -> None:
    loop = PROSE + " and then he said it again" * 30
    assert measure_repeated_share(loop) > REPEATED_SHARE
    assert assess_answer(loop).is_repetitive
    # A script without spaces has no words to repeat, but compresses.
    chinese = "我不知道。" * 200
    assert measure_repeated_share(chinese) == 0.0
    assert measure_compression(chinese) > COMPRESSION_RATIO
    assert assess_answer(chinese).is_repetitive


def test_only_the_end_of_a_long_answer_is_compressed() -> None:
    varied = " ".join(str(number**3) for number in range(5000))
    assert len(varied) > 2 * TAIL_BYTES
    loop = "again " * (TAIL_BYTES // 6 + 1)
    assert measure_compression(varied + loop) == measure_compression(loop)
    assert measure_compression(loop + varied) < COMPRESSION_RATIO


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, but as an AI I cannot do this.",
        "Sorry, I won't.",
        "I apologize, but that is beyond me.",
        "As an AI language model, I do not have feelings.",
        "  I cannot answer this question.",
        "I am unable to open links.",
        "It's not appropriate to discuss that.",
        "Unfortunately, I cannot see the picture.",
    ],
)
def test_an_answer_that_begins_as_assistants_refuse_is_marked(text: str) -> None:
    assert looks_like_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "As an example, take the number seven.",
        "Sorrytown is a village.",
        "The minister said: I'm sorry, but no.",
        "I can do that. I cannot do the other.",
        "It is not possible for a square to be round.",
        PROSE,
        "",
    ],
)
def test_an_answer_that_does_not_begin_so_is_not(text: str) -> None:
    assert not looks_like_refusal(text)


def test_duplicates_are_equal_but_for_the_space_around() -> None:
    assert digest_answer(" yes\n") == digest_answer("yes")
    assert digest_answer("yes") != digest_answer("Yes")
    assert 0 <= digest_answer("\ud800") < 2**64  # what no part can hold is no reason to fail
