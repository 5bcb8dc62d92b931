"""Where this user's caches are: the embedded model, converted tokenizers, digests, tuned settings."""

import os
from pathlib import Path


def find_user_cache() -> Path:
    """Return synthia-batch's directory under XDG_CACHE_HOME, or under ~/.cache. It may not exist yet."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG base directory specification has relative paths ignored.
    root = Path(home) if os.path.isabs(home) else Path.home() / ".cache"
    return root / "synthia-batch"
