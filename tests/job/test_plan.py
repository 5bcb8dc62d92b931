"""The plan: shards and seeds as pure functions."""

import itertools
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthia_batch.core.types import Message, Row
from synthia_batch.job.plan import derive_seed, expand_row, plan_shards
from synthia_batch.job.resolved import PlanSpec, SystemText


def make_spec(*names: str, num_samples: int = 1, column: str | None = None, replace: bool = True) -> PlanSpec:
    systems = tuple(SystemText(name=name, text=f"Be {name}." if name != "none" else "") for name in names)
    return PlanSpec(
        systems=systems, system_column=column, replace_own_system=replace, num_samples=num_samples, seed=0
    )


def make_row(index: int = 0, *messages: Message, system: str | None = None) -> Row:
    turns = messages or (Message("user", "Why?"),)
    return Row(index=index, id=f"row-{index}", messages=turns, system=system, kept={}, line=index + 1)


@given(rows=st.integers(1, 2_000_000), per_row=st.integers(1, 7))
def test_shards_cover_every_row_once_and_in_order(rows: int, per_row: int) -> None:
    shards = plan_shards(rows, per_row)
    assert shards[0].first_row == 0
    assert shards[-1].stop_row == rows
    assert all(left.stop_row == right.first_row for left, right in itertools.pairwise(shards))
    assert all(shard.first == shard.first_row * per_row for shard in shards)
    assert shards[-1].stop == rows * per_row
    assert all(shard.count == len(shards) and shard.samples > 0 for shard in shards)
    assert len({shard.samples for shard in shards[:-1]}) <= 1, "ordinals find their shards by division"


@pytest.mark.parametrize(
    ("rows", "per_row", "shards", "rows_of_one"),
    [
        (1_000_000, 1, 1000, 1000),  # as many as are liked
        (1_000_001, 1, 501, 2000),  # fewer and larger
        (4_000_000, 1, 1000, 4000),
        (10_000_000, 1, 2500, 4000),  # no larger: memory does not grow with the job
        (2_500, 4, 3, 1000),
        (2_500, 100, 63, 40),  # many samples of a row: fewer rows
        (3, 5_000, 3, 1),  # no less than a row
        (400_000_000, 1, 99_976, 4001),  # no more than five digits name
    ],
)
def test_a_shard_is_kept_to_what_memory_holds(rows: int, per_row: int, shards: int, rows_of_one: int) -> None:
    planned = plan_shards(rows, per_row)
    assert (len(planned), planned[0].stop_row) == (shards, rows_of_one)


def test_a_small_job_is_one_shard() -> None:
    assert len(plan_shards(28, 3)) == 1


def test_no_rows_are_no_plan() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        plan_shards(0, 1)


def test_samples_go_by_row_then_system_message_then_index() -> None:
    samples = list(expand_row(make_row(5), make_spec("kind", "brief", num_samples=2)))
    assert [sample.ordinal for sample in samples] == [20, 21, 22, 23]
    assert [(sample.system, sample.index) for sample in samples] == [
        ("kind", 0), ("kind", 1), ("brief", 0), ("brief", 1),
    ]  # fmt: skip
    assert samples[0].messages == (Message("system", "Be kind."), Message("user", "Why?"))
    assert len({sample.seed for sample in samples}) == 4


def test_the_system_message_none_adds_nothing() -> None:
    (sample,) = expand_row(make_row(), make_spec("none"))
    assert sample.messages == (Message("user", "Why?"),)


def test_a_rows_own_system_message_stays_unless_one_was_asked_for() -> None:
    row = make_row(0, Message("system", "Own."), Message("user", "Why?"))
    (kept,) = expand_row(row, make_spec("kind", replace=False))
    (replaced,) = expand_row(row, make_spec("kind", replace=True))
    assert (kept.system, kept.messages[0].content) == ("row", "Own.")
    assert (replaced.system, replaced.messages[0].content) == ("kind", "Be kind.")
    assert len(replaced.messages) == 2


def test_a_system_column_gives_each_row_its_own() -> None:
    spec = make_spec("column", column="persona")
    (spoken,) = expand_row(make_row(system="Be a pirate."), spec)
    (silent,) = expand_row(make_row(system=None), spec)
    assert spoken.messages[0] == Message("system", "Be a pirate.")
    assert silent.messages == (Message("user", "Why?"),)


def test_a_blank_system_column_leaves_a_row_its_own() -> None:
    turns = (Message("system", "Own."), Message("user", "Why?"))
    spec = make_spec("column", column="persona", replace=False)
    (silent,) = expand_row(make_row(0, *turns, system=None), spec)
    (spoken,) = expand_row(make_row(0, *turns, system="Be a pirate."), spec)
    assert (silent.system, silent.messages) == ("row", turns)
    assert (spoken.system, spoken.messages[0].content) == ("column", "Be a pirate.")
    assert len(spoken.messages) == 2


def test_a_seed_has_63_bits_and_depends_on_each_of_its_parts() -> None:
    seeds = {
        derive_seed(*parts)
        for parts in [
            (0, "a", "s", 0),
            (1, "a", "s", 0),
            (0, "b", "s", 0),
            (0, "a", "t", 0),
            (0, "a", "s", 1),
        ]
    }
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(derive_seed(0, str(n), "s", 0) for n in range(200)) > 2**61


def test_parts_of_a_seed_never_run_into_each_other() -> None:
    assert derive_seed(0, "a\0b", "c", 0) != derive_seed(0, "a", "b\0c", 0)


def test_another_process_derives_the_same_seed() -> None:
    code = "from synthia_batch.job.plan import derive_seed; print(derive_seed(7, 'naïve ☃', 'synthia', 3))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(other.stdout) == derive_seed(7, "naïve ☃", "synthia", 3)


def test_samples_per_file_sets_the_size_of_every_file_but_the_last() -> None:
    def sizes(rows: int, per_row: int, per_file: int) -> list[int]:
        return [shard.samples for shard in plan_shards(rows, per_row, per_file)]

    assert sizes(10, 1, 4) == [4, 4, 2]
    assert sizes(10, 3, 7) == [6, 6, 6, 6, 6], "whole rows"
    assert sizes(3, 5, 2) == [5, 5, 5], "at least one row"
    assert len(plan_shards(100_000_000, 1, 100_000)) == 1000
    assert len(plan_shards(100_000_000, 1)) == 25_000
    assert len(plan_shards(1_000_000, 1, 1)) <= 99_999, "what five digits can number"
