"""The same tokens as the model cards' own method gives, but for near ties."""

import subprocess
import sys

import pytest
from conftest import ROOT

from synthia_batch.hardware import installed_vllm

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(900),
    pytest.mark.skipif(installed_vllm() is None, reason="vLLM is not installed: make setup installs it"),
]


def test_at_least_62_of_64_greedy_answers_are_those_of_transformers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.cards_method", "--prompts", "64", "--max-tokens", "48"],
        cwd=ROOT, capture_output=True, text=True, timeout=800, check=False,
    )  # fmt: skip
    with capsys.disabled():
        print("\n" + done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
