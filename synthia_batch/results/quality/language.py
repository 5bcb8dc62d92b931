"""In which language a text is, told by py3langid: the letters and their order, no words are looked up."""

import functools
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from synthia_batch.errors import UsageError

CONFIDENCE = 0.7
"""Of 1: under it nothing is said. Sentences of a European language mostly have more, code and numbers 0.1."""
LEAST_LETTERS = 20
"""Of a text: shorter ones are names, numbers and words that many languages have."""


def check_library() -> str:
    """Return the library and its version.

    Raises:
        UsageError: It is not installed.
    """
    if find_spec("py3langid") is None:
        raise UsageError("--flag language needs py3langid; run: pip install 'synthia-batch[flags]'")
    return f"py3langid {version('py3langid')}"


def detect_language(text: str) -> str | None:
    """Return the ISO 639-1 code of the text's language, None where that is not sure enough."""
    if sum(map(str.isalpha, text)) < LEAST_LETTERS:
        return None
    language, confidence = _load().classify(text.encode(errors="replace").decode())
    # Rounded: the last bits of a sum are not the same on every machine.
    return str(language) if round(confidence, 3) >= CONFIDENCE else None


@functools.cache
def _load() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
