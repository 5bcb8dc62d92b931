"""The same tokens as the model cards' own method gives, but for near ties."""

import subprocess
import sys

import pytest
from conftest import NEEDS_VLLM, ROOT

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(900),
    NEEDS_VLLM,
]


@pytest.mark.parametrize("prompts", [32, pytest.param(64, marks=pytest.mark.exhaustive("64 prompts"))])
def test_greedy_answers_are_those_of_transformers_but_for_one_in_32(
    prompts: int, capsys: pytest.CaptureFixture[str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.cards_method", "--prompts", str(prompts), "--max-tokens", "48"],
        cwd=ROOT, capture_output=True, text=True, timeout=800, check=False,
    )  # fmt: skip
    with capsys.disabled():
        print("\n" + done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
