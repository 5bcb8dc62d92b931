"""The pages of docs/reference/ that are lists are those that the code gives, and its lists are whole."""

import ast
import runpy
from collections.abc import Iterator
from typing import get_args

import pytest
from conftest import ROOT

from synthia_batch.core.failure_codes import FAILURE_CODES
from synthia_batch.core.shutdown import DrainReason
from synthia_batch.errors import EXIT_CODES, SynthiaBatchError
from synthia_batch.job.schema import FlagName
from synthia_batch.results.quality.flags import CODE_PREFIX

TOOL = runpy.run_path(str(ROOT / "tools" / "reference_pages.py"))
PACKAGE = ROOT / "synthia_batch"


@pytest.mark.parametrize("name", TOOL["PAGES"])
def test_a_page_is_the_one_that_the_code_gives(name: str) -> None:
    committed = (ROOT / "docs" / "reference" / name).read_text()
    assert committed == TOOL["PAGES"][name](), "run: python tools/reference_pages.py"


def list_codes(tree: ast.Module) -> Iterator[str]:
    """Yield every failure code that a module writes out, as a text or as a constant of its own."""
    names = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            continue
        given: list[ast.expr] = []
        if node.func.id == "SampleRefused":
            given = node.args[:1]
        elif node.func.id == "Failed":
            given = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
        for value in given:
            if isinstance(value, ast.Constant):
                yield value.value
            elif isinstance(value, ast.Name) and isinstance(names.get(value.id), str):
                yield names[value.id]


def test_every_code_that_a_sample_fails_with_has_a_meaning() -> None:
    codes = {code for path in PACKAGE.rglob("*.py") for code in list_codes(ast.parse(path.read_text()))}
    assert len(codes) > 10
    codes |= {f"{CODE_PREFIX}{name}" for name in get_args(FlagName)}
    assert codes - FAILURE_CODES.keys() == set()


def test_every_code_with_a_meaning_is_one_that_the_package_names() -> None:
    sources = [path for path in PACKAGE.rglob("*.py") if path.name != "failure_codes.py"]
    texts = "".join(path.read_text() for path in sources)
    flagged = {f"{CODE_PREFIX}{name}" for name in get_args(FlagName)}
    assert [code for code in FAILURE_CODES.keys() - flagged if f'"{code}"' not in texts] == []


def list_exit_codes(error: type[SynthiaBatchError]) -> Iterator[int]:
    yield error.exit_code
    for other in error.__subclasses__():
        yield from list_exit_codes(other)


def test_every_exit_code_has_a_meaning_and_none_is_left_over() -> None:
    used = {0, 130, *list_exit_codes(SynthiaBatchError), *(reason.exit_code for reason in DrainReason)}
    assert used == EXIT_CODES.keys()
