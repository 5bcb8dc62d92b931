"""Which samples are made before the others."""

from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthia_batch.job.plan import plan_shards
from synthia_batch.job.resolved import PlanSpec, SystemText
from synthia_batch.runner.subset import SHARDS_TOUCHED, pick_probe, pick_rows, scatter


def make_spec(*names: str, num_samples: int = 1) -> PlanSpec:
    systems = tuple(SystemText(name=name, text=name) for name in names)
    return PlanSpec(
        systems=systems, system_column=None, replace_own_system=True, num_samples=num_samples, seed=0
    )


@given(st.integers(1, 3000))
def test_every_number_comes_once(total: int) -> None:
    assert sorted(scatter(total)) == list(range(total))


@pytest.mark.parametrize("total", [1_000_000, 999_983, 65_536, 1830])
@pytest.mark.parametrize("count", [64, 200, 333])
def test_the_first_few_lie_all_over_and_on_no_grid(total: int, count: int) -> None:
    places = sorted(islice(scatter(total), count))
    tenths = Counter(place * 10 // total for place in places)
    assert max(tenths.values()) <= 2 * count / 10, "no tenth has twice its share"
    assert min(tenths.values()) >= 0.5 * count / 10
    for period in (2, 3, 4, 7, 8):
        rests = Counter(place % period for place in places)
        assert len(rests) == period
        assert max(rests.values()) <= 2 * count / period + 4, f"rows that repeat every {period}"


def test_more_are_the_same_and_others() -> None:
    shards = plan_shards(50_000, 3)
    small, large = pick_probe(shards, 200), pick_probe(shards, 300)
    assert len(small.ordinals) == 200
    assert len(large.ordinals) == 300
    assert set(small.ordinals) < set(large.ordinals)
    assert pick_probe(shards, 200) == small
    assert list(small.ordinals) == sorted(small.ordinals)


def test_a_probe_of_a_large_job_touches_few_shards_from_all_over_it() -> None:
    shards = plan_shards(1_000_000, 1)
    subset = pick_probe(shards, 1000)
    touched = [shard.number for shard in shards if subset.within(shard)]
    assert len(subset.ordinals) == 1000
    assert SHARDS_TOUCHED / 2 < len(touched) <= SHARDS_TOUCHED
    assert touched[0] < 20
    assert touched[-1] >= 980


def test_a_probe_of_more_than_there_is_takes_everything() -> None:
    shards = plan_shards(3000, 2)
    assert list(pick_probe(shards, 10**6).ordinals) == list(range(6000))
    many = plan_shards(200_000, 1)  # 200 shards
    assert len(pick_probe(many, 10**6).ordinals) == 200_000


def test_picks_fall_into_their_shards() -> None:
    shards = plan_shards(5000, 2)
    subset = pick_probe(shards, 77)
    assert [ordinal for shard in shards for ordinal in subset.within(shard)] == list(subset.ordinals)
    assert all(shard.first <= ordinal < shard.stop for shard in shards for ordinal in subset.within(shard))


def test_rows_give_their_first_sample_of_each_system_message() -> None:
    spec = make_spec("kind", "brief", num_samples=3)
    assert list(pick_rows(100, spec, 2, scattered=False).ordinals) == [0, 3, 6, 9]
    assert list(pick_rows(1, spec, 5, scattered=False).ordinals) == [0, 3]
    random = pick_rows(10_000, spec, 5, scattered=True).ordinals
    assert len(random) == 10
    assert random == pick_rows(10_000, spec, 5, scattered=True).ordinals
    assert len({ordinal // 6 * 5 // 10_000 for ordinal in random}) >= 3, "from all over the input"
