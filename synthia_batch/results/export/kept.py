"""Columns of a run that an export carries over, beside the fields of its format."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

from synthia_batch.core.errors import UsageError
from synthia_batch.results.export.formats import ExportFormat
from synthia_batch.results.read.samples import FinishedSample


def name_kept_columns(
    chosen: ExportFormat, names: Sequence[str], renamed: Mapping[str, str]
) -> Mapping[str, str]:
    """Return the names that the columns `names` of the run get in the export.

    Raises:
        UsageError: The format has no place for them, or a field of that name; or two have one name.
    """
    for name in renamed:
        if name not in names:
            raise UsageError(f"--rename-column {name}: it is not exported; add it to --keep-columns")
    if names and not chosen.takes_columns:
        raise UsageError(
            f"--keep-columns {','.join(names)}: the format {chosen.name} has no place for other columns; "
            "leave it out, or choose another format"
        )
    found = {name: renamed.get(name, name) for name in names}
    for name, given in found.items():
        if given in chosen.columns:
            raise UsageError(
                f"--keep-columns {name}: the format {chosen.name} has a field {given!r} of its own; add "
                f"--rename-column {name}=NEW_NAME"
            )
        if list(found.values()).count(given) > 1:
            raise UsageError(f"--rename-column: two columns would be named {given!r}; name each once")
    return found


def rename_kept(samples: Iterable[FinishedSample], names: Mapping[str, str]) -> Iterator[FinishedSample]:
    """Yield the samples with their kept columns under the names that `names` gives them."""
    if all(old == new for old, new in names.items()):
        yield from samples
        return
    for sample in samples:
        yield dataclasses.replace(sample, kept={new: sample.kept[old] for old, new in names.items()})
