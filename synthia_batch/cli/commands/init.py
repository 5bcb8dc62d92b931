"""`synthia-batch init`: write a job file to start from."""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from synthia_batch.cli.flags import INPUT_HELP
from synthia_batch.core.terminal import show

STDOUT = Path("-")


def init(
    source: Annotated[list[str], typer.Argument(metavar="INPUT", help=INPUT_HELP)],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="- is stdout. [./NAME.yaml]")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Write a pipeline: judge, best-of-n, ... See docs/how-to/recipes.md."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a commented job file for an input's columns. It runs as written."""
    from synthia_batch.core.errors import UsageError
    from synthia_batch.core.files import create_file
    from synthia_batch.core.formatting import format_count
    from synthia_batch.inputs.fetch.file_types import split_name
    from synthia_batch.operations.init import format_proposal, propose_job
    from synthia_batch.operations.recipes import write_recipe

    stem = recipe or split_name(source[0].rstrip("/").rpartition("/")[2]).stem.strip("*") or "job"
    file = output or Path(f"{stem}.yaml")
    if file == STDOUT and recipe is not None:
        raise UsageError("-o -: a recipe has several files; name the job file with -o FILE")
    _refuse_to_overwrite([] if file == STDOUT or force else [file])
    proposal = propose_job(source)
    if recipe is not None:
        texts = dict(write_recipe(recipe, proposal, file))
    elif file == STDOUT:
        show(format_proposal(proposal, Path()), end="")
        return
    else:
        texts = {file: format_proposal(proposal, file.parent)}
    _refuse_to_overwrite([] if force else [path for path, text in texts.items() if not _has(path, text)])
    for path, text in texts.items():
        try:
            with os.fdopen(create_file(path), "w", encoding="utf-8") as target:
                target.write(text)
        except OSError as exc:
            raise UsageError(f"{path}: cannot be written: {exc.strerror}; name another with -o FILE") from exc
    shown, column = shlex.quote(str(file)), proposal.columns.text
    source_column = f", from the column {column!r}" if column is not None else ""
    show(
        f"{file}: {format_count(proposal.rows, 'row')} of {proposal.holds}{source_column}\n"
        f"check it with: synthia-batch plan {shown}",
        file=sys.stderr,
    )
    show(file)


def _has(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()


def _refuse_to_overwrite(files: list[Path]) -> None:
    from synthia_batch.core.errors import UsageError

    for file in files:
        if file.exists():
            raise UsageError(
                f"{file}: already exists; name another with -o FILE, or overwrite it with --force"
            )
