"""Convert a GGUF file to a directory that every engine can read: dequantized weights, tokenizer, config.

Runs in a separate process, since importing transformers takes 8 s and torch much memory:

    python -m synthia_batch.models.gguf_convert SOURCE TARGET [--without-weights]

The same file gives the same bytes on every machine (checked with one and two threads, and with
transformers 5.19 and 5.20).
"""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from synthia_batch.core.errors import ModelUnavailable
from synthia_batch.core.vision import hide_other_builds

_LOADED = "loaded"
_WITHOUT_WEIGHTS = "--without-weights"
INSTALL_HINT = "run: pip install 'synthia-batch[demo]'"


def require_converter(hint: str = INSTALL_HINT) -> None:
    """Check that the packages for a conversion are installed.

    Raises:
        ModelUnavailable: One is missing; `hint` says how to install it.
    """
    packages = ("transformers", "gguf", "accelerate")
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelUnavailable(f"reading a GGUF file needs {' and '.join(missing)}; {hint}")


def convert_gguf(
    source: Path, target: Path, loaded: Callable[[], None] = lambda: None, *, with_weights: bool = True
) -> None:
    """Write the model in the file `source`, in bfloat16, to the new directory `target`.

    Calls `loaded` once the libraries are loaded. `with_weights=False` writes only config and tokenizer.

    Raises:
        ModelUnavailable: It could not be converted.
    """
    command = [sys.executable, "-m", __name__, str(source), str(target)]
    command += [] if with_weights else [_WITHOUT_WEIGHTS]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
    ) as child:
        for line in child.stdout or ():
            if line.strip() == _LOADED:
                loaded()
                break
        _, errors = child.communicate()
    if child.returncode != 0:
        reason = next((line for line in reversed(errors.splitlines()) if line.strip()), "it was killed")
        raise ModelUnavailable(
            f"{source} could not be converted to {target}: {reason}; check free disk space and memory, and "
            "install the versions of transformers and gguf from constraints.txt"
        )


def main(arguments: list[str]) -> None:
    """Convert a file in this process; see the module."""
    # Here, since the libraries print progress and advice on import, some of it to stdout.
    hide_other_builds()
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source, target = Path(arguments[0]), Path(arguments[1])
    print(_LOADED, flush=True)
    options: dict[str, Any] = {"gguf_file": source.name, "local_files_only": True}
    if _WITHOUT_WEIGHTS in arguments:
        AutoConfig.from_pretrained(source.parent, **options).save_pretrained(target)
    else:
        quantization = GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(
            source.parent, quantization_config=quantization, dtype="bfloat16", **options
        )
        model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source.parent, **options).save_pretrained(target)
    for name in ("config.json", "generation_config.json"):
        _forget_version(target / name)


def _forget_version(config: Path) -> None:
    """Remove the entry that depends on the version of transformers."""
    if not config.is_file():
        return
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings.pop("transformers_version", None)
    config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
