"""docs/determinism.md against the code: which setting is in which class of identity."""

import dataclasses
import re
from pathlib import Path
from typing import Any

from conftest import ROOT
from pydantic import BaseModel
from test_engine_environment import SPEC

from synthia_batch.core.types import Structure
from synthia_batch.job.dotted import flatten
from synthia_batch.job.identity import NOT_IDENTITY, IdentityParts, InputIdentity, Numerics, identify
from synthia_batch.job.resolved import EngineSpec, LoraAdapter, PlanSpec, PromptSpec, SystemText
from synthia_batch.job.schema import Job
from synthia_batch.workers.scripted import ScriptedOptions

ROW = re.compile(
    r"^\| (?P<setting>[^|]+?) \| (?P<kind>always|strict|never) \| (?P<field>[^|]*?) ?\| (?P<why>.+) \|$"
)


def read_table() -> list[dict[str, str]]:
    lines = (ROOT / "docs" / "determinism.md").read_text().splitlines()
    return [found.groupdict() for line in lines if (found := ROW.match(line))]


def list_settings(kind: str | None = None) -> list[str]:
    rows = [row for row in read_table() if kind in (None, row["kind"])]
    return [row["setting"].strip("`") for row in rows if row["setting"].startswith("`")]


def list_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            keys += list_keys(inner, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def identify_some(engine: EngineSpec) -> dict[str, Any]:
    structure = Structure(kind="regex", text="a+")
    adapter = LoraAdapter(name="a", path=Path("/a"), digest="d", rank=1)
    return flatten(
        identify(
            IdentityParts(
                input=InputIdentity(digest="d", columns={"prompt": "q"}, limit=3),
                plan=PlanSpec(
                    systems=(SystemText(name="s", text="t"),), system_column=None,
                    replace_own_system=True, num_samples=1, seed=0,
                ),
                prompt=PromptSpec(format="chat", template="x", special_tokens={"eos": "e"}, tokenizer=None),
                engine=dataclasses.replace(engine, adapters=(adapter,), structure=structure),
                model_digests={"weights": "w", "tokenizer": "t"},
                numerics=Numerics(version="v", hardware="h", structures="x"),
                on_overflow="fail",
                flags={"names": ["empty"], "drop": False},
            )
        )
    )  # fmt: skip


def test_every_setting_of_a_job_is_in_the_table_once() -> None:
    known = [*list_keys(Job), *(f"engine.{name}" for name in NOT_IDENTITY)]
    assert sorted(list_settings()) == sorted(known)


def test_what_identity_leaves_out_is_what_the_table_says_may_change() -> None:
    engine = {name.removeprefix("engine.") for name in list_settings("never") if name.startswith("engine.")}
    assert engine == set(NOT_IDENTITY)
    assert not [row for row in read_table() if (row["kind"] == "never") == bool(row["field"])]


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


def test_the_scripted_engines_settings_are_known() -> None:
    told = {"fail_every", "max_num_seqs", "max_words"}
    assert set(ScriptedOptions.model_fields) - set(NOT_IDENTITY) - told == set()
