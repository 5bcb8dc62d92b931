"""What `tune` tries, against engines that are formulas."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from test_engine_environment import SPEC as CPU_SPEC

from synthia_batch.operations.tune_search import (
    Axis,
    Settings,
    explain_no_drafts,
    list_axes,
    search,
    usual_batch,
)

SPEC = replace(CPU_SPEC, max_model_len=4096)
USUAL = usual_batch(SPEC)


def walk(axes: tuple[Axis, ...], measure: Callable[[Settings], float]) -> list[Settings]:
    tried: list[Settings] = []
    proposals = search(axes)
    settings = next(proposals)
    while True:
        tried.append(settings)
        try:
            settings = proposals.send(measure(settings))
        except StopIteration:
            return tried


def test_a_larger_batch_is_tried_as_long_as_it_gains() -> None:
    axes = list_axes(SPEC, prompts=4 * USUAL)
    tried = walk(axes[:1], lambda settings: min(settings.get("max_num_seqs", USUAL), 2 * USUAL))
    assert tried == [{}, {"max_num_seqs": 2 * USUAL}, {"max_num_seqs": 4 * USUAL}]


def test_a_smaller_batch_is_tried_where_a_larger_one_is_slower() -> None:
    axes = list_axes(SPEC, prompts=4 * USUAL)
    tried = walk(axes[:1], lambda settings: 1000 - settings.get("max_num_seqs", USUAL))
    assert [settings.get("max_num_seqs", USUAL) for settings in tried] == [
        USUAL,
        2 * USUAL,
        USUAL // 2,
        USUAL // 4,
    ]


def test_each_setting_starts_from_the_best_of_those_before() -> None:
    def measure(settings: Settings) -> float:
        return 100 + 50 * (settings.get("max_num_seqs") == 512) + 50 * ("speculative_config" in settings)

    tried = walk(list_axes(replace(SPEC, determinism="fast", device="cuda"), prompts=512), measure)
    assert tried[1] == {"max_num_seqs": 512}
    assert tried[2] == {"max_num_seqs": 512, "max_num_batched_tokens": 16384}
    assert tried[3].keys() == {"max_num_seqs", "speculative_config"}
    assert len(tried) <= 8, "every try is an engine that loads"


def test_what_does_not_work_is_no_gain() -> None:
    tried = walk(list_axes(SPEC, prompts=2 * USUAL), lambda settings: 0.0 if settings else 10.0)
    assert tried == [
        {},
        {"max_num_seqs": 2 * USUAL},
        {"max_num_seqs": USUAL // 2},
        {"max_num_batched_tokens": 8192},
    ]


def test_strict_determinism_and_cpus_leave_speculative_decoding_out_and_say_why() -> None:
    on_gpu = replace(SPEC, device="cuda")
    fast = replace(on_gpu, determinism="fast")
    for spec, why in ((on_gpu, "strict"), (replace(fast, device="cpu"), "on CPUs")):
        assert [axis.key for axis in list_axes(spec, 256)] == ["max_num_seqs", "max_num_batched_tokens"]
        assert why in str(explain_no_drafts(spec))
    keys = [axis.key for axis in list_axes(fast, 256)]
    assert keys == ["max_num_seqs", "max_num_batched_tokens", "speculative_config"]


def test_what_was_said_is_not_varied() -> None:
    said = replace(SPEC, settings={"max_num_seqs": 32})
    assert [axis.key for axis in list_axes(said, 256)] == ["max_num_batched_tokens"]


@pytest.mark.parametrize("prompts", [1, 2, 8, 100])
def test_no_batch_is_larger_than_the_prompts_fill(prompts: int) -> None:
    scripted = replace(SPEC, kind="scripted")
    values = [value for axis in list_axes(scripted, prompts) for way in axis.directions for value in way]
    assert all(0 < value <= prompts for value in values)


def test_every_step_of_a_cpu_engine_holds_a_whole_sequence() -> None:
    (_, steps) = list_axes(SPEC, 256)
    assert all(value >= SPEC.max_model_len for way in steps.directions for value in way)
    # The scripted engine knows no such setting.
    assert len(list_axes(replace(SPEC, kind="scripted"), 256)) == 1
