"""The job of `synthia-batch demo`: real questions to the embedded model, from a file that the package has."""

from importlib.resources import files
from pathlib import Path

from synthia_batch.core.errors import UsageError
from synthia_batch.job.loading.merge import Layer

SAMPLE_NAME = "questions.jsonl"
MAX_TOKENS = 256


def place_sample(directory: Path) -> Path:
    """Return the path of the sample input in `directory`, copied there unless it is there already.

    Raises:
        UsageError: Another file has its name, or it cannot be written.
    """
    content = files("synthia_batch.operations").joinpath("sample", SAMPLE_NAME).read_bytes()
    path = directory / SAMPLE_NAME
    try:
        with path.open("xb") as file:  # Replaces nothing, and follows no link.
            file.write(content)
    except FileExistsError:
        if not path.is_file() or path.read_bytes() != content:
            raise UsageError(
                f"{path} is another file than the demo's; run `synthia-batch demo` in an empty directory"
            ) from None
    except OSError as exc:
        raise UsageError(
            f"{path}: cannot be written: {exc.strerror}; run `synthia-batch demo` in a directory of your own"
        ) from exc
    return path


def make_demo_layer(sample: Path) -> Layer:
    """Return the layer of the demo's job, for the default model: short answers, for a first minute."""
    return Layer(
        origin="the demo",
        values={
            "name": "demo",
            "input": {"path": str(sample), "keep_columns": ["topic"]},
            "system": ["synthia"],
            "sampling": {"max_tokens": MAX_TOKENS},
        },
    )
