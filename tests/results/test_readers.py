"""A finished run opens, as it is, in what people read datasets with."""

from pathlib import Path

import pytest
from conftest import Command, write_jsonl


@pytest.fixture
def dataset(synthia: Command, tmp_path: Path) -> Path:
    """Two shards, the second without failures: 1,500 rows of which each hundredth of the first fails."""
    records = [
        {"prompt": f"Number {n}?", "tag": None if n < 1000 else f"t{n}", "score": n / 2} for n in range(1500)
    ]
    source = write_jsonl(tmp_path / "q.jsonl", records)
    done = synthia(
        "run", source, "--engine", "scripted", "--pool", "local", "--keep-columns", "tag,score", "-o", "out",
        "--set", "engine.fail_every=100",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return tmp_path / "out"


def test_datasets_loads_the_directory_and_its_failed_samples(dataset: Path, tmp_path: Path) -> None:
    import datasets

    cache = str(tmp_path / "cache")
    loaded = datasets.load_dataset(str(dataset), cache_dir=cache)
    assert set(loaded) == {"train"}
    assert loaded["train"].num_rows == 1485
    assert loaded["train"][0]["messages"][-1] == {
        "role": "assistant",
        "content": loaded["train"][0]["response"],
    }
    assert loaded["train"]["tag"][:2] == [None, None]
    failed = datasets.load_dataset(str(dataset), "failed", cache_dir=cache)["failed"]
    assert failed["row_index"] == list(range(0, 1500, 100))


def test_pandas_polars_and_duckdb_read_the_same_rows(dataset: Path) -> None:
    import duckdb
    import pandas
    import polars

    by_pandas = pandas.read_parquet(dataset / "data")
    by_polars = polars.read_parquet(dataset / "data" / "*.parquet")
    by_duckdb = duckdb.sql(
        f"select row_index, response from '{dataset}/data/*.parquet' order by row_index"
    ).fetchall()
    expected = [n for n in range(1500) if n % 100]
    assert by_pandas["row_index"].tolist() == expected
    assert by_polars["row_index"].to_list() == expected
    assert [row for row, _ in by_duckdb] == expected
    assert (
        by_pandas["response"].tolist() == by_polars["response"].to_list() == [text for _, text in by_duckdb]
    )
