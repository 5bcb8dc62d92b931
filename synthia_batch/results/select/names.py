"""The names that a run gives to what an expression can read of its samples."""

from synthia_batch.errors import UsageError
from synthia_batch.inputs.records.expressions import SampleNames
from synthia_batch.results.verify.facts import RunFacts
from synthia_batch.storage.parts.schema import list_data_columns
from synthia_batch.storage.parts.selection import list_runs


def name_samples(facts: RunFacts) -> SampleNames:
    """Return the names in the expressions of the run."""
    job, earlier = facts.plan["name"], list_runs(facts.kept)
    if job in [column.name for column in facts.kept]:
        raise UsageError(
            f"the run kept a column {job!r}, which is also its job's name: no expression can tell the two "
            "apart; run it again with another name: --set name=NAME"
        )
    own = [column.name for column in list_data_columns(facts.grid.optional)]
    plain = [column.name for column in facts.kept if column.name not in earlier]
    return SampleNames(job=job, runs={**earlier, job: own}, plain=plain)


def choose_run(names: SampleNames, named: str | None) -> str:
    """Return the run whose rows are compared: that `named`, else the only earlier one, else the job's own.

    Raises:
        UsageError: It is none of them, or there are several earlier ones and none is named.
    """
    if named is not None and named not in names.runs:
        raise UsageError(f"per: there is no run {named}; there are {', '.join(names.runs)}")
    earlier = [name for name in names.runs if name != names.job]
    if named is None and len(earlier) > 1:
        raise UsageError(f"per: of which run's rows? Name one of {', '.join(names.runs)}")
    return named or (earlier or [names.job])[0]
