"""docs/explanation/determinism.md against the code: which setting is in which class of identity."""

import dataclasses
import re
import runpy
from pathlib import Path
from typing import Any

from conftest import ROOT
from test_engine_environment import SPEC

from synthia_batch.core.types import Structure
from synthia_batch.job.dotted import flatten
from synthia_batch.job.identity import (
    NOT_IDENTITY,
    IdentityParts,
    InputIdentity,
    Numerics,
    identify,
    select_identity_settings,
)
from synthia_batch.job.keys import walk_keys
from synthia_batch.job.resolved import EngineSpec, LoraAdapter, PlanSpec, PromptSpec, SystemText

ROW = re.compile(
    r"^\| (?P<setting>[^|]+?) \| (?P<kind>always|strict|never) \| (?P<field>[^|]*?) ?\| (?P<why>.+) \|$"
)


def read_table() -> list[dict[str, str]]:
    lines = (ROOT / "docs" / "explanation" / "determinism.md").read_text().splitlines()
    return [found.groupdict() for line in lines if (found := ROW.match(line))]


def list_settings() -> list[str]:
    return [row["setting"].strip("`") for row in read_table() if row["setting"].startswith("`")]


def identify_some(engine: EngineSpec) -> dict[str, Any]:
    structure = Structure(kind="regex", text="a+")
    adapter = LoraAdapter(name="a", path=Path("/a"), digest="d", rank=1)
    return flatten(
        identify(
            IdentityParts(
                input=InputIdentity(digest="d", columns={"prompt": "q"}, limit=3),
                plan=PlanSpec(
                    systems=(SystemText(name="s", text="t"),), system_column=None,
                    replace_own_system=True, num_samples=1, seed=0, samples_per_file=9,
                ),
                prompt=PromptSpec(format="chat", template="x", special_tokens={"eos": "e"}, tokenizer=None),
                engine=dataclasses.replace(engine, adapters=(adapter,), structure=structure),
                model_digests={"weights": "w", "tokenizer": "t"},
                numerics=Numerics(version="v", hardware="h", structures="x"),
                on_overflow="fail",
                flags={"names": ["empty"], "drop": False},
                accept={"expression": "response", "max_candidates": 2},
            )
        )
    )  # fmt: skip


def test_the_table_is_the_one_that_the_schema_gives() -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "identity_table.py"))
    text = (ROOT / "docs" / "explanation" / "determinism.md").read_text()
    assert tool["replace_table"](text) == text, "run: python tools/identity_table.py"


def test_every_setting_of_a_job_has_one_class() -> None:
    declared = [key.name for key in walk_keys() if key.is_declared]
    assert sorted(list_settings()) == sorted([*declared, *(f"engine.{name}" for name in NOT_IDENTITY)])
    assert all(row["why"].strip() for row in read_table())


def test_every_field_of_the_identity_is_in_the_table_and_every_field_of_the_table_in_it() -> None:
    settings = {"shows_batch_above": 3, "enforce_eager": True}
    strict = identify_some(dataclasses.replace(SPEC, settings=settings))
    fast = identify_some(dataclasses.replace(SPEC, settings=settings, determinism="fast"))
    fields = {kind: set() for kind in ("always", "strict")}
    for row in read_table():
        if row["kind"] != "never":
            fields[row["kind"]].add(row["field"].strip("`"))

    def belongs(leaf: str, group: str) -> bool:
        return any(leaf == field or leaf.startswith(f"{field}.") for field in fields[group])

    only_strict = strict.keys() - fast.keys()
    assert {leaf for leaf in only_strict if not belongs(leaf, "strict")} == set()
    assert {leaf for leaf in fast if not belongs(leaf, "always")} == set()
    everything = [*fields["always"], *fields["strict"]]
    assert [f for f in everything if not any(leaf == f or leaf.startswith(f"{f}.") for leaf in strict)] == []
    assert "engine.shows_batch_above" not in strict
    assert strict["engine.enforce_eager"] is True


def test_the_identity_has_every_declared_setting_that_is_not_excluded() -> None:
    declared = {key.name.removeprefix("engine.") for key in walk_keys() if not key.is_declared}
    others = declared - NOT_IDENTITY
    assert {"fail_every", "max_words", "extra_body", "reasoning_parser"} <= others
    settings = dict.fromkeys(declared, 1)
    assert select_identity_settings(settings) == dict.fromkeys(sorted(others), 1)
