"""The frame codec: what was written comes back, and nothing else passes for it."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthia_batch.storage.journal.frames import Frame, encode_frame, scan_frames

texts = st.text(st.characters(exclude_categories=["Cs"]))


def scan(data: bytes) -> list[Frame]:
    return list(scan_frames(io.BytesIO(data)))


@given(st.dictionaries(texts, st.none() | texts | st.integers()))
def test_any_text_without_lone_surrogates_comes_back(value):
    frame = encode_frame(value)

    assert frame.count(b"\n") == 1
    assert scan(frame) == [Frame(0, len(frame), value)]


def test_a_lone_surrogate_is_refused_before_it_is_written():
    with pytest.raises(ValueError, match="surrogates"):
        encode_frame({"response": "\ud800"})


def test_every_flipped_bit_is_seen():
    frame = encode_frame({"response": "naïve 🙂 \n \u2028", "tokens": 12})

    for position in range(len(frame) * 8):
        flipped = bytearray(frame)
        flipped[position // 8] ^= 1 << position % 8
        assert all(found.value is None for found in scan(bytes(flipped))), position


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b" \n",
        b"no frame at all\n",
        encode_frame({"a": 1})[:-1],
        encode_frame({"a": 1}).replace(b" 7 ", b" 07 "),
        encode_frame({"a": 1}).replace(b" 7 ", b"  7 "),
        encode_frame({"a": 1}).upper(),
        encode_frame({"a": 1}).replace(b"\n", b"\r\n"),
        b"\0" * 30 + b"\n",
    ],
)
def test_only_the_canonical_line_is_a_frame(line):
    assert [frame.value for frame in scan(line)] == [None]


def test_damage_does_not_spread_beyond_its_line():
    first, second, third = (encode_frame({"n": number}) for number in range(3))

    frames = scan(first + second[:-3] + b"\n" + third)

    assert [frame.value for frame in frames] == [{"n": 0}, None, {"n": 2}]
    assert frames[1].offset == len(first)
