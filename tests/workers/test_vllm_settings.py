"""`--set engine.*` against the installed vLLM, without importing it."""

import subprocess
import sys

import pytest
from conftest import NEEDS_VLLM

from synthia_batch.errors import UsageError
from synthia_batch.workers.vllm.settings import check_settings, list_fields

pytestmark = NEEDS_VLLM


def test_settings_that_vllm_has_pass() -> None:
    check_settings(
        {
            "max_num_seqs": 32,
            "gpu_memory_utilization": 0.8,
            "enforce_eager": True,
            "kv_cache_dtype": "fp8",
            "speculative_config": {"method": "ngram", "num_speculative_tokens": 3},
        },
        "cpu",
        "fast",
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_num_seq": 32}, "did you mean engine.max_num_seqs"),
        ({"zzz": 1}, "no such setting"),
        ({"max_num_seqs": "many"}, "expected int .*got 'many'"),
        ({"enforce_eager": 1}, "expected bool, got 1"),
        ({"model": "other"}, "--model"),
        ({"max_model_len": 100}, "model.max_model_len"),
        ({"seed": 3}, "--seed"),
        ({"enable_lora": False}, "--lora"),
        ({"hf_config_path": "elsewhere"}, "--model"),
    ],
)
def test_others_are_refused_with_what_was_meant(settings: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_settings(settings, "cpu", "strict")


def test_vllm_is_not_imported_for_it() -> None:
    probe = (
        "import sys; from synthia_batch.workers.vllm.settings import list_fields; list_fields()\n"
        "sys.exit(f'{sorted({\"vllm\", \"torch\"} & set(sys.modules))}' if 'torch' in sys.modules else 0)"
    )
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


def test_the_list_is_vllms_own() -> None:
    fields = list_fields()
    assert len(fields) > 100
    assert fields["max_num_seqs"].startswith("int")
