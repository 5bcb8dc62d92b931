"""Samples between being made and being published."""

from pathlib import Path

import pytest
from conftest import read_bytes_of_data, write_jsonl

from synthia_batch import Job, assemble, run_job


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
