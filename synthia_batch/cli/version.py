"""`synthia-batch --version`: what is installed, without importing it."""

import platform
from importlib import metadata
from typing import Annotated

import typer


def show_version(is_asked: bool) -> None:
    """Print the versions that decide about a run, and end, if that is asked."""
    if not is_asked:
        return
    from synthia_batch.core.hardware import installed_vllm

    vllm = " ".join(installed_vllm() or ("vllm", "not installed"))
    print(f"synthia-batch {_find_version('synthia-batch')}")
    print(f"{vllm}, ray {_find_version('ray')}, Python {platform.python_version()}")
    raise typer.Exit


def take_general_flags(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=show_version, help="Show what is installed, and exit."
        ),
    ] = False,
) -> None:
    """Turn a file of prompts into a finished dataset, overnight, on whatever GPUs are there."""


def _find_version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
