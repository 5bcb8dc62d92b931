"""Language detection by py3langid, from character n-grams."""

import functools
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from synthia_batch.core.errors import UsageError

CONFIDENCE = 0.7
"""Minimum confidence. Sentences in European languages mostly exceed it; code and numbers have about 0.1."""
MIN_LETTERS = 20
"""Shorter texts are names, numbers and words common to many languages."""


def check_library() -> str:
    """Return the library and its version. Raises UsageError if py3langid is not installed."""
    if find_spec("py3langid") is None:
        raise UsageError("--flag language needs py3langid; run: pip install 'synthia-batch[flags]'")
    return f"py3langid {version('py3langid')}"


def detect_language(text: str) -> str | None:
    """Return the ISO 639-1 code of the text's language, None if the confidence is too low."""
    if sum(map(str.isalpha, text)) < MIN_LETTERS:
        return None
    language, confidence = _load().classify(text.encode(errors="replace").decode())
    # Rounded: the last bits of a sum differ between machines.
    return str(language) if round(confidence, 3) >= CONFIDENCE else None


@functools.cache
def _load() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
