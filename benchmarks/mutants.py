"""Mutations of the package drawn at random: does a test of their package fail with each?

See benchmarks/mutations.py, whose `--tests` this is. A mutant has one expression altered or a call less.
"""

import ast
import copy
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, zip_longest
from pathlib import Path

TESTS = {
    "storage": ("tests/storage",),
    "scheduler": ("tests/scheduler", "tests/simulation"),
    "workers": ("tests/workers",),
    "inputs": ("tests/inputs",),
    "runner": ("tests/runner",),
}
"""The packages from which mutants are drawn, and the tests that each is tried against."""
QUICK = "not machine and not long"
"""Of those tests: no clusters, and none whose length is in its mark."""
SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
}
_LEFT_OUT = (".git", ".venv", "outputs", "__pycache__", ".*_cache", ".hypothesis", "site", "dist")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """In `file` of the package, the bytes from `start` to `stop` are `text` instead. `line` is for people."""

    file: str
    line: int
    start: int
    stop: int
    before: str
    text: str

    @property
    def package(self) -> str:
        """The package that it is in."""
        return self.file.split("/")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether the tests caught `mutant`, by what, and in how many seconds. None: nothing was altered."""

    mutant: Mutant | None
    package: str
    is_caught: bool
    by: str
    seconds: float


def list_mutants(source: bytes, file: str) -> list[Mutant]:
    """Return every mutant of a module, in the order of its bytes; only what functions do is altered."""
    tree = ast.parse(source)
    offsets = [0]
    for line in source.splitlines(keepends=True):
        offsets.append(offsets[-1] + len(line))
    found = []
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in chain.from_iterable(_walk(statement) for statement in function.body):
                altered = alter(node)
                if altered is not None:
                    start = offsets[node.lineno - 1] + node.col_offset
                    stop = offsets[node.end_lineno - 1] + node.end_col_offset
                    before = source[start:stop].decode()
                    found.append(
                        Mutant(
                            file=file, line=node.lineno, start=start, stop=stop, before=before, text=altered
                        )
                    )
    return sorted(found, key=lambda mutant: (mutant.start, mutant.stop))


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """Yield `node` and what is in it, but for annotations, texts and functions, which have their own turn."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.JoinedStr):
        return
    yield node
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and name != "annotation":
                yield from _walk(child)


def alter(node: ast.AST) -> str | None:
    """Return the source of `node` as a mutant has it, None where it stays."""
    match node:
        case ast.Expr(value=ast.Call() | ast.Await()) if not ast.unparse(node).startswith("_log."):
            return "pass"
        case ast.Compare(ops=[operator]) | ast.BoolOp(op=operator) | ast.BinOp(op=operator):
            return _swap(node, operator)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return f"({ast.unparse(operand)})"
        case ast.Constant(value=bool(value)):
            return str(not value)
        case ast.Constant(value=int(value)):
            return str(value + 1)
    return None


def _swap(node: ast.AST, operator: ast.AST) -> str | None:
    if type(operator) not in SWAPPED:
        return None
    altered = copy.deepcopy(node)
    other = SWAPPED[type(operator)]()
    if isinstance(altered, ast.Compare):
        altered.ops = [other]  # type: ignore[list-item]
    else:
        altered.op = other  # type: ignore[attr-defined]
    return f"({ast.unparse(altered)})"


def draw_mutants(root: Path, seed: int, count: int, packages: Sequence[str] = tuple(TESTS)) -> list[Mutant]:
    """Return `count` mutants of the repository `root`, of each package in turn; a seed has its own."""
    draw = random.Random(seed)
    by_package = []
    for package in packages:
        files = sorted((root / "synthia_batch" / package).rglob("*.py"))
        names = [str(path.relative_to(root / "synthia_batch")) for path in files]
        mutants = [
            mutant
            for path, name in zip(files, names, strict=True)
            for mutant in list_mutants(path.read_bytes(), name)
        ]
        by_package.append(draw.sample(mutants, min(count, len(mutants))))
    in_turn = [mutant for row in zip_longest(*by_package) for mutant in row if mutant is not None]
    return in_turn[:count]


def try_mutants(
    root: Path, mutants: Sequence[Mutant], results: Path, *, seconds: float = 900.0
) -> Iterator[Verdict]:
    """Try each of `mutants` that `results` does not have yet, one at a time in a copy; yield verdicts.

    The tests of a package are first run on what is not altered. `seconds` is the limit of a run of tests,
    after which a mutant counts as caught.

    Raises:
        RuntimeError: The tests of a package fail without a mutant.
    """
    verdicts = read_verdicts(results)
    results.write_text("".join(_encode(one) for one in verdicts))  # Without a torn line.
    known = {(one.mutant, one.package) for one in verdicts}
    with Copy(root) as copied:
        for mutant in mutants:
            for asked in (None, mutant):
                if (asked, mutant.package) in known:
                    continue
                verdict = copied.run_tests(asked, mutant.package, seconds)
                if asked is None and verdict.is_caught:
                    raise RuntimeError(f"{verdict.by} fails as it is, without a mutant")
                known.add((asked, mutant.package))
                with results.open("a") as file:
                    file.write(_encode(verdict))
                if asked is not None:
                    yield verdict


def read_verdicts(results: Path) -> list[Verdict]:
    """Return what a file of results has, nothing if there is none. A torn last line is left out."""
    lines = results.read_bytes().split(b"\n")[:-1] if results.exists() else []
    found = [json.loads(line) for line in lines]
    return [
        Verdict(**{**one, "mutant": Mutant(**one["mutant"]) if one["mutant"] is not None else None})
        for one in found
    ]


def _encode(verdict: Verdict) -> str:
    return json.dumps(asdict(verdict)) + "\n"


class Copy:
    """A throw-away copy of the repository `root`. A context manager."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._home = Path()

    def __enter__(self) -> "Copy":
        self._home = Path(tempfile.mkdtemp(prefix="mutants-"))
        shutil.copytree(self._root, self._home / "copy", ignore=shutil.ignore_patterns(*_LEFT_OUT))
        return self

    def __exit__(self, *exc: object) -> None:
        shutil.rmtree(self._home)

    def run_tests(self, mutant: Mutant | None, package: str, seconds: float) -> Verdict:
        """Return what the tests of `package` say to `mutant`, or to what is not altered."""
        copied = self._home / "copy"
        path = copied / "synthia_batch" / mutant.file if mutant is not None else None
        source = path.read_bytes() if path is not None else b""
        started = time.monotonic()
        try:
            if path is not None and mutant is not None:
                path.write_bytes(source[: mutant.start] + mutant.text.encode() + source[mutant.stop :])
            by = self._find_failure(copied, TESTS[package], seconds)
        finally:
            if path is not None:
                path.write_bytes(source)
        took = round(time.monotonic() - started, 1)
        return Verdict(mutant=mutant, package=package, is_caught=by != "", by=by, seconds=took)

    def _find_failure(self, copied: Path, tests: Sequence[str], seconds: float) -> str:
        """Return the first test that fails, or why none could; empty if all pass."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider"]
        command += ["-m", QUICK, *(test for test in tests if (copied / test).exists())]
        environment = {**os.environ, "PYTHONPATH": str(copied)}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        process = subprocess.Popen(
            command, cwd=copied, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip
        try:
            said, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # With the commands that the tests have started.
            process.communicate()
            return f"no end within {seconds:.0f} s"
        if process.returncode == 0:
            return ""
        told = [line for line in said.splitlines() if line.startswith(("FAILED ", "ERROR "))]
        if process.returncode not in (1, 2, 4) or not told:
            raise RuntimeError(f"pytest ended with {process.returncode}:\n{said[-4000:]}")
        return told[0].split(" ")[1]


def write_table(verdicts: Iterable[Verdict]) -> Iterator[str]:
    """Yield the lines of a Markdown table of `verdicts`."""
    yield "| mutant | was | is | caught by | time |"
    yield "|---|---|---|---|---|"
    for one in verdicts:
        if one.mutant is not None:
            was, now = (
                " ".join(text.split()).replace("|", "\\|") for text in (one.mutant.before, one.mutant.text)
            )
            by = f"`{one.by}`" if one.is_caught else "**not**"
            place = f"{one.mutant.file}:{one.mutant.line}"
            yield f"| `{place}` | `{was}` | `{now}` | {by} | {one.seconds:.0f} s |"
