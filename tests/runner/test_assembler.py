"""Samples between being made and being published."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from conftest import read_bytes_of_data, write_jsonl

from synthia_batch import Job, run_job
from synthia_batch.core.types import Failed, Message, Row
from synthia_batch.job.plan import plan_shards
from synthia_batch.job.resolved import PlanSpec, SystemText
from synthia_batch.runner.directory import assembler as assemble
from synthia_batch.runner.directory.assembler import Assembler
from synthia_batch.storage.parts.schema import PartFormat


def run(source: Path, output: Path) -> dict[str, bytes]:
    run_job(
        Job.model_validate(
            {
                "input": {"path": source},
                "num_samples": 2,
                "engine": {"kind": "scripted", "fail_every": 7},
                "pool": {"kind": "local"},
                "output": output,
            }
        )
    )
    return read_bytes_of_data(output)


@pytest.mark.parametrize("kept_bytes", [0, 1_000_000, assemble.KEPT_BYTES])
def test_what_is_kept_in_memory_never_shows_in_the_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_bytes: int
) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"prompt": f"Number {n}?"} for n in range(2500)])
    with monkeypatch.context() as patch:
        patch.setattr(assemble, "KEPT_BYTES", 0)
        expected = run(source, tmp_path / "reread")
    monkeypatch.setattr(assemble, "KEPT_BYTES", kept_bytes)
    assert run(source, tmp_path / "kept") == expected
    assert len(expected) == 3 + 3 + 2


def test_no_more_is_kept_than_there_is_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"prompt": f"Number {n}?"} for n in range(3500)])
    room = 1500 * 2 * assemble.SAMPLE_BYTES
    monkeypatch.setattr(assemble, "KEPT_BYTES", room)
    most = 0
    take = assemble.Assembler._take_samples

    def watch(self: assemble.Assembler, *arguments: object) -> object:
        nonlocal most
        most = max(most, sum(kept.size_bytes for kept in self._kept.values()))
        return take(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(assemble.Assembler, "_take_samples", watch)
    run(source, tmp_path / "out")
    assert 0 < most <= room


def make_assembler(**source: Any) -> Assembler:
    spec = PlanSpec(
        systems=(SystemText(name="none", text=""),),
        system_column=None,
        replace_own_system=True,
        num_samples=2,
        seed=0,
    )
    return Assembler(
        source=SimpleNamespace(check=lambda scan: None, **source),  # type: ignore[arg-type]
        scan=Mock(),
        plan=spec,
        part_format=PartFormat(model="m", source_file="f", metadata={}),
    )


@pytest.mark.parametrize("listed", [8, 7])
def test_a_shard_published_before_its_listing_is_asked_for_more_leaves_nothing(listed: int) -> None:
    """7 of 8: the last one had ended in an earlier attempt, so that nobody asks for it at first."""

    def read_rows(scan: object, first: int, stop: int) -> Iterator[Row]:
        reads.append(first)
        for index in range(first, stop):
            turns = (Message("user", "Why?"),)
            yield Row(index=index, id=f"{index}", messages=turns, system=None, kept={}, line=index + 1)

    reads: list[int] = []
    assembler = make_assembler(read_rows=read_rows)
    (shard,) = plan_shards(4, 2)
    listing = assembler.list_samples(shard)
    assert len(list(itertools.islice(listing, listed))) == listed
    outcomes = {n: Failed(ordinal=n, code="x", message="x") for n in range(8)}
    encoded = assembler.encode(shard, outcomes).encoded
    assert encoded.failed is not None
    assert encoded.failed.rows == 8
    assert reads == [0], "the samples that were kept were published"
    assert len(list(listing)) == 8 - listed
    assert not assembler._kept, "nothing stays of a shard that is published"
