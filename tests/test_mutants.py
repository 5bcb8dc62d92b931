"""Mutants drawn at random: what is altered, and the verdict of real tests on it."""

import ast
from pathlib import Path

import pytest

from benchmarks import mutations
from benchmarks.mutants import draw_mutants, list_mutants, read_verdicts, try_mutants

SOURCE = """\
LIMIT = 3


def clip(value: int = 1) -> int:
    note("é")
    if not value < LIMIT and value:
        return LIMIT + 0
    return value
"""


def apply(source: str, start: int, stop: int, text: str) -> str:
    content = source.encode()
    return (content[:start] + text.encode() + content[stop:]).decode()


def test_a_mutant_alters_one_expression_or_leaves_a_call_out() -> None:
    mutants = list_mutants(SOURCE.encode(), "storage/x.py")
    assert [(one.line, one.before, one.text) for one in mutants] == [
        (5, 'note("é")', "pass"),
        (6, "not value < LIMIT", "(value < LIMIT)"),
        (6, "not value < LIMIT and value", "(not value < LIMIT or value)"),
        (6, "value < LIMIT", "(value <= LIMIT)"),
        (7, "LIMIT + 0", "(LIMIT - 0)"),
        (7, "0", "1"),
    ]
    for one in mutants:
        altered = apply(SOURCE, one.start, one.stop, one.text)
        assert ast.dump(ast.parse(altered)) != ast.dump(ast.parse(SOURCE))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository of two packages; of one, the tests see only what is returned below the limit."""
    root = tmp_path / "repository"
    for package in ("storage", "inputs"):
        (root / "synthia_batch" / package).mkdir(parents=True)
        (root / "tests" / package).mkdir(parents=True)
        (root / "synthia_batch" / package / "clip.py").write_text(SOURCE + "\n\ndef note(text):\n    pass\n")
        (root / "tests" / package / f"test_{package}.py").write_text(
            f"from synthia_batch.{package}.clip import clip\n\n\ndef test_clip():\n    assert clip(2) == 2\n"
        )
        (root / "synthia_batch" / package / "__init__.py").touch()
    (root / "synthia_batch/__init__.py").touch()
    (root / "pyproject.toml").write_text("[tool.pytest.ini_options]\nmarkers = ['machine', 'long']\n")
    return root


def test_the_same_seed_draws_the_same_from_each_package_in_turn(root: Path) -> None:
    drawn = draw_mutants(root, 7, 5)
    assert drawn == draw_mutants(root, 7, 5)
    assert [one.package for one in drawn] == ["storage", "inputs", "storage", "inputs", "storage"]
    assert drawn != draw_mutants(root, 8, 5)
    assert {one.package for one in draw_mutants(root, 7, 5, ["inputs"])} == {"inputs"}


def test_the_tests_of_a_package_catch_a_mutant_or_do_not_and_none_is_tried_twice(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mutants = list_mutants(SOURCE.encode(), "storage/clip.py")
    chosen = [one for one in mutants if one.before in ("not value < LIMIT", "LIMIT + 0")]
    results = tmp_path / "results.jsonl"
    first, second = try_mutants(root, chosen, results)
    test = "tests/storage/test_storage.py::test_clip"
    assert (first.mutant, first.is_caught, first.by) == (chosen[0], True, test)
    assert (second.mutant, second.is_caught, second.by) == (chosen[1], False, "")
    with results.open("a") as file:
        file.write('{"torn')
    assert [one.mutant for one in read_verdicts(results)] == [None, *chosen], "first as it is"
    assert list(try_mutants(root, chosen, results)) == []
    (third,) = try_mutants(root, [*chosen, mutants[0]], results)
    assert [one.mutant for one in read_verdicts(results)] == [None, *chosen, third.mutant]
    assert (root / "synthia_batch/storage/clip.py").read_text().startswith(SOURCE)

    monkeypatch.setattr(mutations, "ROOT", root)
    mutations.try_at_random(chosen, results, 60)
    told = capsys.readouterr().out
    assert f"| `storage/clip.py:6` | `not value < LIMIT` | `(value < LIMIT)` | `{test}` |" in told
    assert "| **not** |" in told
    assert "1 of 2 caught" in told


def test_tests_that_fail_as_it_is_are_no_judges(root: Path, tmp_path: Path) -> None:
    test = root / "tests/storage/test_storage.py"
    test.write_text(test.read_text().replace("== 2", "== 3"))
    mutants = list_mutants(SOURCE.encode(), "storage/clip.py")
    with pytest.raises(RuntimeError, match="test_clip fails as it is, without a mutant"):
        list(try_mutants(root, mutants[:1], tmp_path / "results.jsonl"))
    assert read_verdicts(tmp_path / "results.jsonl") == []
