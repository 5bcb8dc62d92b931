"""Which rows repeat an earlier one."""

import struct
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthia_batch.errors import IntegrityError, StorageFailed
from synthia_batch.inputs.records.hash_index import HashIndex
from synthia_batch.inputs.records.row_ids import DuplicateIndex


def count_occurrences(hashes: list[int]) -> list[int]:
    """Return what the index must find, the plain way."""
    seen: Counter[int] = Counter()
    numbers = []
    for value in hashes:
        numbers.append(seen[value])
        seen[value] += 1
    return numbers


def find_occurrences(hashes: list[int], scratch: Path, block_rows: int, step: int = 3) -> DuplicateIndex:
    with HashIndex(scratch, block_rows) as index:
        for start in range(0, len(hashes), step):
            index.add(b"".join(struct.pack(">Q", value) for value in hashes[start : start + step]))
        return index.finish(len(hashes))


@given(
    hashes=st.lists(
        st.sampled_from([0, 1, 2**57, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1), max_size=80
    ),
    block_rows=st.sampled_from([1, 2, 5, 1000]),
)
def test_occurrences_are_counted_whatever_the_size_of_a_block(
    tmp_path_factory: pytest.TempPathFactory, hashes: list[int], block_rows: int
) -> None:
    scratch = tmp_path_factory.getbasetemp()
    found = find_occurrences(hashes, scratch, block_rows)
    expected = count_occurrences(hashes)
    assert found.list_numbers(0, len(hashes)) == expected
    assert [found.number(row) for row in range(len(hashes))] == expected
    assert len(found) == sum(number > 0 for number in expected)
    assert not list(scratch.glob("ids-*"))


@pytest.mark.parametrize("block_rows", [10, 1000])
def test_saved_occurrences_are_the_same_when_loaded(tmp_path: Path, block_rows: int) -> None:
    hashes = [number * 2**55 % 97 for number in range(500)]
    found = find_occurrences(hashes, tmp_path, block_rows)
    (tmp_path / "occurrences").write_bytes(b"".join(found.encode()))
    loaded = DuplicateIndex.load(tmp_path / "occurrences")
    assert loaded.list_numbers(0, 500) == count_occurrences(hashes)
    assert loaded.list_numbers(120, 130) == count_occurrences(hashes)[120:130]
    assert loaded.list_rows(0, 3) == found.list_rows(0, 3)


def test_no_repeats_are_saved_and_loaded_too(tmp_path: Path) -> None:
    (tmp_path / "occurrences").write_bytes(b"".join(DuplicateIndex.none().encode()))
    assert len(DuplicateIndex.load(tmp_path / "occurrences")) == 0
    assert DuplicateIndex.load(tmp_path / "occurrences").number(5) == 0


def test_any_damage_to_a_saved_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "occurrences"
    path.write_bytes(b"".join(find_occurrences([1, 1, 2, 2, 2], tmp_path, 100).encode()))
    content = path.read_bytes()
    damaged = [content[:size] for size in range(len(content))]
    damaged += [content + b"\0", b""]
    for place in range(len(content)):
        damaged.append(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
    for damage in damaged:
        path.write_bytes(damage)
        with pytest.raises(IntegrityError, match="the index of repeated rows"):
            DuplicateIndex.load(path)
    path.unlink()
    with pytest.raises(IntegrityError):
        DuplicateIndex.load(path)


def test_a_scratch_directory_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match="cannot write temporary files"):
        find_occurrences([1, 2, 3], tmp_path / "missing", 1)


def test_a_hash_too_few_is_never_passed_over(tmp_path: Path) -> None:
    with HashIndex(tmp_path) as index:
        index.add(bytes(8))
        with pytest.raises(RuntimeError, match="expected 2 hashes, got 1"):
            index.finish(2)
