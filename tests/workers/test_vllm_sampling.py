"""`--set sampling.*` against the installed vLLM, without importing it, and what of it is identity."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import NEEDS_VLLM, Command, write_jsonl

from synthia_batch.core.types import Request
from synthia_batch.errors import UsageError
from synthia_batch.job.sampling import REFUSED, Sampling, identify_sampling
from synthia_batch.workers.vllm.arguments import override_sampling, sampling_arguments
from synthia_batch.workers.vllm.sampling import check_sampling
from synthia_batch.workers.vllm.settings import find_class

OURS = {"max_tokens", "min_tokens"}
"""What goes to vLLM with each request, beside what all have in common."""


@NEEDS_VLLM
def test_every_parameter_of_vllm_is_taken_or_refused_with_a_reason() -> None:
    theirs = {name for name in find_class("sampling_params.py", "SamplingParams") if not name.startswith("_")}
    known = set(Sampling.model_fields) | set(REFUSED)
    assert theirs - known == {"output_text_buffer_length"}, "which vLLM sets itself"
    assert set(sampling_arguments(Sampling())) | OURS <= theirs


@NEEDS_VLLM
@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"min_tokens": 9, "max_tokens": 8}, "sampling.min_tokens: 9 is above sampling.max_tokens, 8"),
        ({"stop_token_ids": [99]}, "sampling.stop_token_ids: the model has no token 99: it has 50"),
        ({"allowed_token_ids": [1, 50]}, "sampling.allowed_token_ids: the model has no token 50"),
        ({"logit_bias": {50: 1}}, "sampling.logit_bias: the model has no token 50"),
    ],
    ids=str,
)
def test_what_vllm_would_refuse_of_every_row_is_refused_before(said: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_sampling(Sampling(**said), 50)


@NEEDS_VLLM
def test_vllm_is_not_imported_for_it() -> None:
    probe = (
        "import sys\nfrom synthia_batch.workers.vllm.sampling import check_sampling\n"
        "from synthia_batch.job.sampling import Sampling\n"
        "check_sampling(Sampling(logit_bias={3: 1}), 50)\nsys.exit('vllm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


def test_what_is_left_at_its_default_is_not_in_the_identity() -> None:
    before = {
        "temperature": 0.75, "top_p": 1.0, "top_k": 50, "min_p": 0.0, "repetition_penalty": 1.0,
        "presence_penalty": 0.0, "frequency_penalty": 0.0, "max_tokens": 1024, "stop": [],
    }  # fmt: skip
    assert identify_sampling(Sampling()) == before
    assert identify_sampling(Sampling(min_tokens=0, skip_special_tokens=True, bad_words=())) == before
    said = Sampling(
        min_tokens=3, logit_bias={7: -100}, repetition_detection={"max_pattern_size": 4, "min_count": 3}
    )
    assert json.loads(json.dumps(identify_sampling(said))) == before | {
        "min_tokens": 3,
        "logit_bias": {"7": -100.0},
        "repetition_detection": {"max_pattern_size": 4, "min_pattern_size": 1, "min_count": 3},
    }


def test_a_request_has_what_its_row_says_and_else_the_jobs() -> None:
    job = Sampling(temperature=0.5, stop_token_ids=(3,))
    plain = Request(ordinal=0, token_ids=b"x", seed=1)
    assert override_sampling(job, plain) is job
    own = Request(ordinal=0, token_ids=b"x", seed=1, sampling={"temperature": 0.0, "logit_bias": {4: 1.0}})
    arguments = sampling_arguments(override_sampling(job, own))
    assert (arguments["temperature"], arguments["stop_token_ids"]) == (0.0, [3])
    assert arguments["logit_bias"] == {4: 1.0}
    assert sampling_arguments(job)["logit_bias"] is None


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("sampling.n=3", "sampling.n (flag): not supported in a job: use -n/--num-samples"),
        ("sampling.seed=3", "sampling.seed (flag): not supported in a job: use --seed"),
        (
            "sampling.output_kind=2",
            "sampling.output_kind (flag): not supported in a job: an answer is read as a whole",
        ),
        ("sampling.prompt_logprobs=2", "the dataset has no column for them"),
        ("sampling.detokenize=false", "the dataset holds text"),
        ("sampling.min_token=2", "unknown key. Did you mean 'min_tokens'?"),
        ("sampling.logit_bias={5: 101}", "Input should be less than or equal to 100, got 101"),
        ("sampling.stop_token_ids=[-1]", "Input should be greater than or equal to 0, got -1"),
    ],
)
def test_a_slip_is_told_with_what_to_say_instead(
    synthia: Command, tmp_path: Path, assignment: str, words: str
) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"prompt": "Why?"}])
    done = synthia("plan", source, "--engine", "scripted", "--set", assignment)
    assert done.returncode == 2
    assert words in done.stderr


def test_a_job_file_says_them_and_a_slip_is_told_by_line(synthia: Command, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "q.jsonl", [{"prompt": "Why?"}])
    job = tmp_path / "job.yaml"
    job.write_text(
        "input: {path: q.jsonl}\nengine: {kind: scripted}\nsampling:\n  bad_words: so\n"
        "  logit_bias: {5: -100}\n  stop_token_ids: [2, 3]\n  ignore_eos: true\n"
    )
    planned = synthia("plan", job, "--json")
    assert planned.returncode == 0, planned.stderr
    settings = json.loads(planned.stdout)["settings"]
    assert settings["sampling.bad_words"]["value"] == ["so"]
    assert settings["sampling.logit_bias.5"]["value"] == -100.0
    assert settings["sampling.logit_bias.5"]["origin"] == f"{job}:5"
    job.write_text(job.read_text() + "  best_of: 4\n")
    refused = synthia("plan", job)
    assert refused.returncode == 2
    assert f"{job}:8:3: sampling.best_of: not supported in a job: vLLM draws no more" in refused.stderr
