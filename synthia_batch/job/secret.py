"""Secrets of a job, which it names and does not hold: `${NAME}` stands for an environment variable.

The job keeps the reference wherever it is written or shown; `reveal` is called where the secret is used.
"""

import re
from collections.abc import Mapping

from synthia_batch.errors import UsageError

REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
"""A reference to an environment variable."""


def reveal(text: str, environment: Mapping[str, str], key: str) -> str:
    """Return `text` with its `${NAME}` references replaced. `key` is the job's, for the message.

    Raises:
        UsageError: A variable that it names is not set.
    """
    for name in REFERENCE.findall(text):
        if not environment.get(name):
            raise UsageError(f"{key}: the environment variable {name} is not set; export {name}=... first")
    return REFERENCE.sub(lambda found: environment[found[1]], text)
