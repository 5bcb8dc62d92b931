"""Where this user's caches are: the embedded model, converted tokenizers, digests, tuned settings."""

import os
import tempfile
from pathlib import Path


def find_user_cache() -> Path:
    """Return synthia-batch's directory under XDG_CACHE_HOME, or under ~/.cache. It may not exist yet."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG base directory specification has relative paths ignored.
    root = Path(home) if os.path.isabs(home) else Path.home() / ".cache"
    return root / "synthia-batch"


def replace_cached(path: Path, content: bytes) -> None:
    """Put `content` at `path`, whole, in place of what was there. Power loss may take it, as it may a cache.

    Raises:
        OSError: It cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise
