"""What is said about the price of strict determinism, before and after a measurement."""

from pathlib import Path

import pytest

from synthia_batch.core.strict_cost import MEASURED_NAME, StrictCost, describe_strict_cost, save_measured


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "synthia-batch"


def test_without_a_measurement_the_estimate_says_that_it_is_one() -> None:
    said = describe_strict_cost("NVIDIA H200")
    assert said.startswith("strict costs about 2 to 4 times the time of fast: not measured on this card;")
    assert "--determinism fast" in said


def test_a_measurement_counts_for_its_card_alone(cache: Path) -> None:
    save_measured("NVIDIA H200", StrictCost(factor=1.62, day="2026-12-01"))
    save_measured("NVIDIA L4", StrictCost(factor=3.0, day="2026-12-02"))
    assert "strict costs 1.6 times the time of fast: measured on NVIDIA H200, 2026-12-01" in (
        describe_strict_cost("NVIDIA H200")
    )
    assert "not measured on this card" in describe_strict_cost("NVIDIA A100")
    (cache / MEASURED_NAME).write_text("{")
    assert "not measured on this card" in describe_strict_cost("NVIDIA H200")
