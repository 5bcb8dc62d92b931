"""Which model, preset and template a job has, and what is refused before weights are fetched."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, write_jsonl
from huggingface_hub import errors
from lora import make_adapter
from test_models import make_model
from test_special_tokens import make_llama_tokenizer

from synthia_batch.cli.app import app
from synthia_batch.core.types import Row
from synthia_batch.errors import ModelUnavailable, SampleRefused, UsageError
from synthia_batch.job.loading.job_file import read_job_file
from synthia_batch.job.loading.merge import Layer
from synthia_batch.job.plan import choose_row_adapter
from synthia_batch.job.resolved import AdapterChoice, ResolvedJob
from synthia_batch.job.schema import Job
from synthia_batch.models.checkpoint import read_model_facts
from synthia_batch.models.hub import Repository, explain
from synthia_batch.operations.settings import list_settings
from synthia_batch.runner.resolve import model_selection as model_choice
from synthia_batch.runner.resolve import resolve_job
from synthia_batch.storage.saved_job import read_job, write_job

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CHATML = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "q.jsonl", [{"prompt": "Why?", "style": "kind"}])


def resolve(source: Path, name: Path | str, quantization: str | None = None, **said: Any) -> ResolvedJob:
    model = {"name": str(name)} | ({"quantization": quantization} if quantization else {})
    values = {"input": {"path": str(source)}, "model": model, "engine": {"kind": "scripted"}} | said
    return resolve_job([Layer(origin="flag", values=values)])


def make_whole_model(path: Path, **files: Any) -> Path:
    model = make_model(path, **files)
    make_llama_tokenizer(model / "tokenizer.json")
    return model


def test_an_unknown_model_gets_its_own_template_by_the_preset_chat(source: Path, tmp_path: Path) -> None:
    model = make_whole_model(tmp_path / "m", **{"chat_template.jinja": CHATML})
    job = resolve(source, model)
    assert (job.preset, job.prompt.format, job.prompt.template) == ("chat", "chat", CHATML)
    assert job.origins["prompt_format"] == "preset chat, found by the model's name"
    assert list_settings(job)["preset"]["resolved"] == "chat"


def test_a_model_without_a_template_is_refused_with_what_would_do(source: Path, tmp_path: Path) -> None:
    model = make_whole_model(tmp_path / "m")
    with pytest.raises(UsageError, match=r"no chat template.*--preset \(.*synthia-7b.*--chat-template FILE"):
        resolve(source, model)
    assert resolve(source, model, preset="synthia-7b").prompt.format == "synthia"
    assert resolve(source, model, prompt_format="synthia-card").prompt.format == "synthia-card"


def test_a_template_of_the_users_own_is_identity_by_its_text(source: Path, tmp_path: Path) -> None:
    model = make_whole_model(tmp_path / "m", **{"chat_template.jinja": CHATML})
    template = tmp_path / "mine.jinja"
    template.write_text("{{ messages[-1].content }}")
    with_own = resolve(source, model)
    mine = resolve(source, model, chat_template=str(template))
    assert mine.prompt.template == "{{ messages[-1].content }}"
    assert mine.fingerprint != with_own.fingerprint
    (tmp_path / "copy.jinja").write_text("{{ messages[-1].content }}")
    assert resolve(source, model, chat_template=str(tmp_path / "copy.jinja")).fingerprint == mine.fingerprint
    template.write_text(CHATML)
    assert resolve(source, model, chat_template=str(template)).fingerprint == with_own.fingerprint
    (model / "chat_template.jinja").unlink()
    assert resolve(source, model, chat_template=str(template)).prompt.template == CHATML
    assert resolve(source, model, chat_template=str(template), preset="synthia-7b").prompt.format == "chat"
    with pytest.raises(UsageError, match="uses no template"):
        resolve(source, model, chat_template=str(template), prompt_format="synthia")
    for content, words in ((None, "cannot be read"), (b"caf\xe9", "not UTF-8"), (b"{% if %}", "line 1")):
        template.unlink(missing_ok=True)
        if content is not None:
            template.write_bytes(content)
        with pytest.raises(UsageError, match=words):
            resolve(source, model, chat_template=str(template))


def test_a_template_and_adapters_in_a_job_file_are_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("chat_template: t.jinja\nlora: {adapters: {style: loras/style}}\n")
    values = read_job_file(tmp_path / "a.yaml").values
    assert values["chat_template"] == str(tmp_path / "t.jinja")
    assert values["lora"]["adapters"] == {"style": str(tmp_path / "loras" / "style")}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Hub's cache, with nothing in it and no network behind it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def cache_model(hub: Path, name: str, **files: Any) -> Path:
    repo = hub / f"models--{name.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    return make_whole_model(repo / "snapshots" / COMMIT, **files)


def test_a_template_is_looked_for_before_weights_are_fetched(
    hub: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []

    def download(name: str, *, allow_patterns: list[str], **options: Any) -> str:
        fetched.extend(allow_patterns)
        return str(make_whole_model(tmp_path / COMMIT))

    monkeypatch.setattr(
        "huggingface_hub.HfApi.list_repo_files", lambda *args, **options: ["config.json", "model.safetensors"]
    )
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(UsageError, match="no chat template"):
        resolve(source, "somebody/base-model")
    assert fetched
    assert not [pattern for pattern in fetched if "safetensors" in pattern]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errors.GatedRepoError, "it is gated: ask for access at https://huggingface.co/a/b"),
        (errors.RepositoryNotFoundError, "no such repository, or it is private"),
        (errors.RevisionNotFoundError, "it has no revision 'v9'"),
        (ConnectionError, "check the name and the network"),
    ],
)
@pytest.mark.parametrize("token", [None, "hf_x"])
def test_why_the_hub_refused_is_said(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception], words: str, token: str | None
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: token)
    cause = error.__new__(error)
    Exception.__init__(cause, "403")
    text = explain(
        Repository(name="a/b", revision="v9", files=None, reason=cause), ValueError("not in the cache")
    )
    assert words in text
    if error in (errors.GatedRepoError, errors.RepositoryNotFoundError):
        assert "HF_TOKEN" in text
        assert ("no token is set" in text) == (token is None)


def of_config(**quantization: Any) -> dict[str, Any]:
    return {"config.json": {"quantization_config": quantization}}


@pytest.mark.parametrize(
    ("files", "described"),
    [
        (of_config(quant_method="gptq", bits=4, group_size=128), "gptq (4 bits, groups of 128)"),
        (of_config(quant_method="fp8", fmt="e4m3"), "fp8 (e4m3)"),
        (
            of_config(quant_method="compressed-tensors", format="pack-quantized"),
            "compressed-tensors (pack-quantized)",
        ),
        (
            {"quant_config.json": {"w_bit": 4, "q_group_size": 128, "version": "GEMM"}},
            "awq (4 bits, groups of 128, GEMM)",
        ),
        ({"quantize_config.json": {"bits": 4, "group_size": 32}}, "gptq (4 bits, groups of 32)"),
        ({}, "None"),
    ],
)
def test_how_a_checkpoint_is_quantized_is_its_own_word(
    source: Path, tmp_path: Path, files: dict[str, Any], described: str
) -> None:
    config = {"max_position_embeddings": 4096} | files.get("config.json", {})
    files = {name: content for name, content in files.items() if name != "config.json"}
    model = make_whole_model(
        tmp_path / "m", **{"config.json": config, "chat_template.jinja": CHATML}, **files
    )
    assert str(read_model_facts(model).quantization) == described
    job = resolve(source, model)
    method = None if described == "None" else described.split()[0]
    assert job.identity["model"]["quantization"] == method
    if method is None:
        with pytest.raises(UsageError, match="is not quantized"):
            resolve(source, model, quantization="awq")
    else:
        assert list_settings(job)["model.quantization"]["resolved"] == described
        said = resolve(source, model, quantization=method)
        assert said.fingerprint == job.fingerprint, "said aloud, it changes nothing"


def test_a_models_commit_is_identity(hub: Path, source: Path) -> None:
    cache_model(hub, "somebody/m", **{"chat_template.jinja": CHATML})
    assert resolve(source, "somebody/m").identity["model"]["revision"] == COMMIT


def make_demo_like(path: Path) -> Path:
    config = {
        "hidden_size": 8, "intermediate_size": 16, "num_key_value_heads": 1, "head_dim": 4,
        "num_hidden_layers": 1, "max_position_embeddings": 64,
    }  # fmt: skip
    return make_whole_model(path, **{"config.json": config, "chat_template.jinja": CHATML})


def test_adapters_are_identity_by_their_content(source: Path, tmp_path: Path) -> None:
    model = make_demo_like(tmp_path / "m")
    one, other = (
        make_adapter(tmp_path / name, model, seed=seed) for name, seed in (("one", 1), ("other", 2))
    )
    plain = resolve(source, model)
    assert "lora" not in plain.identity
    styled = resolve(source, model, lora={"adapters": {"style": str(one)}})
    assert styled.model.name == "m+style"
    assert styled.adapter.name == "style"
    assert styled.engine.adapters[0].rank == 8
    prints = {plain.fingerprint, styled.fingerprint}
    prints.add(resolve(source, model, lora={"adapters": {"style": str(other)}}).fingerprint)
    by_column = resolve(source, model, lora={"adapters": {"a": str(one), "b": str(other)}, "column": "style"})
    prints.add(by_column.fingerprint)
    assert len(prints) == 4
    assert "style" in json.dumps(by_column.columns["keep"])


def test_a_row_takes_the_adapter_that_it_names() -> None:
    def choose(name: str | None, column: str | None, value: Any) -> str | None:
        row = Row(index=0, id="0", messages=(), system=None, kept={"style": value}, line=1)
        return choose_row_adapter(AdapterChoice(name=name, column=column, known=("kind", "terse")), row)

    assert choose(None, None, "kind") is None
    assert choose("kind", None, "terse") == "kind"
    assert choose(None, "style", "terse") == "terse"
    assert choose(None, "style", "") is None
    assert choose(None, "style", None) is None
    for value in ("other", 7):
        with pytest.raises(SampleRefused, match="none of kind, terse") as refused:
            choose(None, "style", value)
        assert refused.value.code == "adapter_unknown"


def test_a_kept_job_has_its_template_and_adapters_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    values = {"input": {"path": "q.jsonl"}, "chat_template": "t.jinja", "lora": {"adapters": {"a": "one"}}}
    write_job(tmp_path / "job.json", Job.model_validate(values))
    kept = read_job(tmp_path / "job.json", tmp_path / "out")
    assert kept is not None
    assert kept.values["chat_template"] == str(tmp_path / "t.jinja")
    assert kept.values["lora"]["adapters"] == {"a": str(tmp_path / "one")}


@pytest.mark.parametrize(
    ("lora", "words"),
    [
        ({"adapters": {"a": "nowhere"}}, "--lora a=nowhere: no LoRA adapter there"),
        ({"adapters": {"a": "one", "b": "other"}}, "--lora-column"),
        ({"column": "style"}, "there are no adapters"),
        ({"adapters": {"a.b": "one"}}, "should match pattern"),
    ],
)
def test_adapters_that_cannot_be_used_are_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: dict[str, Any], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    model = make_demo_like(tmp_path / "m")
    for name in ("one", "other"):
        make_adapter(tmp_path / name, model)
    with pytest.raises((UsageError, ModelUnavailable), match=words):
        resolve(source, model, lora=lora)


def test_an_adapter_of_another_kind_or_without_weights_is_refused(source: Path, tmp_path: Path) -> None:
    model = make_demo_like(tmp_path / "m")
    adapter = make_adapter(tmp_path / "a", model)
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelUnavailable, match=r"no adapter_model\.safetensors"):
        resolve(source, model, lora={"adapters": {"a": str(adapter)}})
    (adapter / "adapter_config.json").write_text('{"r": 8, "peft_type": "IA3"}')
    with pytest.raises(ModelUnavailable, match="expected a LORA adapter, got IA3"):
        resolve(source, model, lora={"adapters": {"a": str(adapter)}})


def read_card_commands() -> list[tuple[str, str]]:
    """Return card and command of each line of the table of models."""
    page = (ROOT / "docs/how-to/own-model.md").read_text(encoding="utf-8")
    line = r"^\| \[([^\]]+)\]\(https://huggingface\.co/\1\) \| `(synthia-batch run [^`]+)` \|"
    return re.findall(line, page, re.MULTILINE)


def test_the_table_has_the_six_cards() -> None:
    assert [card for card, _ in read_card_commands()] == [
        "migtissera/Synthia-70B-v1.1", "migtissera/Synthia-70B", "migtissera/Synthia-7B",
        "migtissera/Synthia-v3.0-11B", "TheBloke/Synthia-70B-v1.2b-AWQ", "TheBloke/Synthia-70B-GGUF",
    ]  # fmt: skip


@pytest.mark.parametrize(("card", "command"), read_card_commands())
def test_every_command_of_the_table_resolves_to_its_cards_model_and_preset(
    hub: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    card: str,
    command: str,
) -> None:
    quantized = {"quantization_config": {"quant_method": "awq", "bits": 4}} if card.endswith("AWQ") else {}
    model = cache_model(hub, card, **{"config.json": {"max_position_embeddings": 4096, **quantized}})
    if card.endswith("GGUF"):
        # The head of a file is all that is read of it here.
        (model / "synthia-70b.Q4_K_M.gguf").write_bytes(b"GGUF\x03\0\0\0" + bytes(16) + b"x")
        monkeypatch.setattr("synthia_batch.models.locate.prepare_directory", lambda *args, **options: model)
    monkeypatch.setattr(model_choice, "total_memory_bytes", lambda: 256 * 10**9)
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)
    assert words[:2] == ["synthia-batch", "run"]
    app(["plan", *words[2:], "--json"], standalone_mode=False)
    plan = json.loads(capsys.readouterr().out)
    settings = {key: entry.get("resolved", entry["value"]) for key, entry in plan["settings"].items()}
    assert settings["model.name"].partition(":")[0] == card
    assert settings["preset"].replace("-v3-", "-v3.0-") == card.partition("/")[2].lower()
    assert settings["prompt_format"] == "synthia"
    assert settings["sampling.stop"] == ["USER:"]
    assert settings["model.max_model_len"] == 4096
    assert settings["model.revision"] == COMMIT
    assert plan["rows"] == 28
