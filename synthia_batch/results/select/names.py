"""The names that a run gives to what an expression can read of its samples."""

from dataclasses import replace

from synthia_batch.core.errors import UsageError
from synthia_batch.inputs.records.expressions import ID, SampleNames
from synthia_batch.job.select import Combine
from synthia_batch.results.verify.facts import RunFacts
from synthia_batch.storage.parts.schema import list_data_columns
from synthia_batch.storage.parts.selection import list_runs

ROW_INDEX = "row_index"
PLACE = (ID, "system", "sample_index")
"""The columns that name a sample of a run."""


def name_samples(facts: RunFacts) -> SampleNames:
    job, earlier = facts.plan["name"], list_runs(facts.kept)
    if job in [column.name for column in facts.kept]:
        raise UsageError(
            f"the run kept a column {job!r}, which is also its job's name: no expression can tell the two "
            "apart; run it again with another name: --set name=NAME"
        )
    own = [column.name for column in list_data_columns(facts.grid.optional)]
    plain = [column.name for column in facts.kept if column.name not in earlier]
    return SampleNames(job=job, runs={**earlier, job: own}, plain=plain)


def choose_run(names: SampleNames, named: str | None, key: str = "per") -> str:
    """Return the run whose rows are compared: that `named`, else the only earlier one, else the job's own.

    `key` is the one that names it, for messages.

    Raises:
        UsageError: It is none of them, or there are several earlier ones and none is named.
    """
    if named is not None and named not in names.runs:
        raise UsageError(f"{key}: there is no run {named}; there are {', '.join(names.runs)}")
    earlier = [name for name in names.runs if name != names.job]
    if named is None and len(earlier) > 1:
        raise UsageError(f"{key}: of which run's rows? Name one of {', '.join(names.runs)}")
    return named or (earlier or [names.job])[0]


def add_combined(names: SampleNames, combine: Combine) -> SampleNames:
    """Return the names in the expressions behind `combine`.

    Raises:
        UsageError: One of its values has the name of a column.
    """
    for name in combine.values:
        if name in names.top or name in names.runs[names.job]:
            raise UsageError(f"combine.{name}: there is a column {name} already; name the value otherwise")
    return replace(names, plain=[*names.plain, *combine.values])
