"""From a GGUF file to a directory that every engine reads: dequantized weights, tokenizer, config.

Works in a process of its own, since importing transformers costs 8 s and torch its memory:

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

from synthia_batch.errors import ModelUnavailable

_LOADED = "loaded"
_WITHOUT_WEIGHTS = "--without-weights"
INSTALL_HINT = "run: pip install 'synthia-batch[demo]'"


def require_converter(hint: str = INSTALL_HINT) -> None:
    """Return if what a conversion needs is installed.

    Raises:
        ModelUnavailable: It is not; `hint` says how to have it.
    """
    packages = ("transformers", "gguf", "accelerate")
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelUnavailable(f"reading a GGUF file needs {' and '.join(missing)}; {hint}")


def convert_gguf(
    source: Path, target: Path, loaded: Callable[[], None] = lambda: None, *, with_weights: bool = True
) -> None:
    """Write the model in the file `source`, in bfloat16, to the new directory `target`.

    Calls `loaded` once the converter is. `with_weights=False` leaves config and tokenizer.

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
        _, said = child.communicate()
    if child.returncode != 0:
        reason = next((line for line in reversed(said.splitlines()) if line.strip()), "it was killed")
        raise ModelUnavailable(
            f"{source} could not be converted to {target}: {reason}; see that disk and memory have room for "
            "it, and install transformers and gguf in the versions of constraints.txt"
        )


def main(arguments: list[str]) -> None:
    """Convert, in this process."""
    # The libraries show bars and advice as they are imported, some of it on stdout.
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
    """Remove the one entry that depends on which transformers wrote the file."""
    if not config.is_file():
        return
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings.pop("transformers_version", None)
    config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
