"""Write questions.parquet from questions.jsonl: the same rows, and the same bytes every time.

Run after changing questions.jsonl:  python inputs/make_inputs.py
"""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA = pa.schema([("id", pa.string()), ("question", pa.string()), ("topic", pa.string())])


def write_questions(folder: Path) -> None:
    """Write `folder`/questions.parquet in one row group, in the order of questions.jsonl."""
    lines = (folder / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    table = pa.Table.from_pylist([json.loads(line) for line in lines], schema=SCHEMA)
    pq.write_table(table, folder / "questions.parquet", compression="zstd")


if __name__ == "__main__":
    write_questions(Path(__file__).parent)
