"""Names on another machine against a pattern: `*` and `?` within a part, `**` over parts, `[...]`."""

import glob
import re
from collections.abc import Sequence


def match_names(names: Sequence[str], pattern: str) -> list[str]:
    """Return the names that fit, sorted; none where `pattern` is none."""
    if not glob.has_magic(pattern):
        return []
    from fsspec.utils import glob_translate

    fits = re.compile(glob_translate(pattern))
    return sorted(name for name in names if fits.match(name))
