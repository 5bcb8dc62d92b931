"""What a row says of its own sampling: how it is read, checked, and where it goes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Command, read_bytes_of_data, write_jsonl
from pyarrow import parquet
from reading import list_faults, read_all, scan

from synthia_batch.core.types import Message, Request, Row, RowSampling
from synthia_batch.errors import UsageError
from synthia_batch.job.plan import derive_own_seed, derive_seed, expand_row
from synthia_batch.job.resolved import PlanSpec, SystemText
from synthia_batch.job.sampling import REFUSED, RepetitionDetection, Sampling
from synthia_batch.models.prompts.formats import SynthiaFormat
from synthia_batch.models.prompts.tokenizer import ByteTokenizer, Renderer
from synthia_batch.scheduler.conversation import Context
from synthia_batch.scheduler.dispatcher import Dispatcher
from synthia_batch.scheduler.multi_turn import MultiTurnSession

SCRIPTED = ("--engine", "scripted", "--pool", "local", "-s", "none")
SAID: list[dict[str, Any] | None] = [
    {"temperature": 0.0, "max_tokens": 7, "stop": ["\n", "END"]},
    {"top_k": 3, "seed": 11},
    None,
    {"min_p": 0.1, "max_tokens": None},
]
READ = [
    RowSampling(values={"temperature": 0.0, "max_tokens": 7, "stop": ("\n", "END")}),
    RowSampling(values={"top_k": 3}, seed=11),
    RowSampling(),
    RowSampling(values={"min_p": 0.1}),
]


def write_objects(path: Path) -> Path:
    return write_jsonl(path / "q.jsonl", [{"prompt": "Why?", "how": said} for said in SAID])


def write_texts(path: Path) -> Path:
    texts = ["" if said is None else json.dumps(said) for said in SAID]
    return write_jsonl(path / "q.jsonl", [{"prompt": "Why?", "how": text} for text in texts])


def write_structs(path: Path) -> Path:
    table = pa.table({"prompt": ["Why?"] * len(SAID), "how": pa.array(SAID)})
    assert pa.types.is_struct(table.schema.field("how").type)
    parquet.write_table(table, path / "q.parquet")
    return path / "q.parquet"


def write_text_column(path: Path) -> Path:
    texts = [None if said is None else json.dumps(said) for said in SAID]
    parquet.write_table(pa.table({"prompt": ["Why?"] * len(SAID), "how": texts}), path / "q.parquet")
    return path / "q.parquet"


@pytest.mark.parametrize("write", [write_objects, write_texts, write_structs, write_text_column])
def test_a_row_says_it_alike_in_every_format(write: Callable[[Path], Path], tmp_path: Path) -> None:
    rows = read_all(write(tmp_path), prompt_column="prompt", sampling_column="how")
    assert [row.sampling for row in rows] == READ


def test_a_map_says_numbers_and_null_or_blank_nothing(tmp_path: Path) -> None:
    kind = pa.map_(pa.string(), pa.float64())
    maps = pa.array([[("temperature", 0.5), ("top_k", 3.0)], [], None], kind)
    parquet.write_table(pa.table({"prompt": ["a", "b", "c"], "how": maps}), tmp_path / "q.parquet")
    rows = read_all(tmp_path / "q.parquet", sampling_column="how")
    assert [row.sampling for row in rows] == [
        RowSampling(values={"temperature": 0.5, "top_k": 3}), RowSampling(), RowSampling(),
    ]  # fmt: skip


def test_without_the_column_a_row_says_nothing_and_no_plan_has_a_word_of_it(tmp_path: Path) -> None:
    path = write_objects(tmp_path)
    assert [row.sampling for row in read_all(path)] == [None] * 4
    assert set(scan(path).to_dict()["columns"]) == {"prompt", "messages", "system", "id", "keep"}
    assert scan(path, sampling_column="how").to_dict()["columns"]["sampling"] == "how"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"temprature": 1}, "'temprature' is not a key of sampling; did you mean 'temperature'?"),
        ({"temperature": 3}, "temperature: Input should be less than or equal to 2, got 3"),
        ({"temperature": True}, "temperature: Input should be a number, not true or false"),
        ({"top_k": 1.5}, "top_k: Input should be a valid integer"),
        ({"stop": [""]}, "stop.0: String should have at least 1 character"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens 9 is above max_tokens 8"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0"),
        ({"n": 2}, "n: not supported in a row: use -n/--num-samples"),
        ({"logprobs": 2}, "logprobs: the column exists for every row or for none; use --logprobs K"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x.[key]: Input should be a valid integer"),
        ('{"temperature": 1', "is a string, and as JSON not valid JSON"),
        ("[1]", 'must be an object such as {"temperature": 0}, not an array'),
        (7, 'must be an object such as {"temperature": 0}, not a number'),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_with_its_line(tmp_path: Path, said: Any, words: str) -> None:
    path = write_jsonl(tmp_path / "q.jsonl", [{"prompt": "a", "how": {}}, {"prompt": "b", "how": said}])
    (fault,) = list_faults(path, sampling_column="how")
    assert fault.startswith(f"{path}:2: column 'how': {words}")


def test_a_column_of_another_type_or_name_is_refused(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"prompt": ["a"], "how": [1.5]}), tmp_path / "q.parquet")
    (fault,) = list_faults(tmp_path / "q.parquet", sampling_column="how")
    assert "column 'how' must be a struct, a map with text as keys, or JSON text, not double" in fault
    with pytest.raises(UsageError, match="no column 'hwo'; did you mean 'how'"):
        scan(write_objects(tmp_path), sampling_column="hwo")


def test_a_bad_row_at_the_end_is_refused_before_anything_is_made(synthia: Command, tmp_path: Path) -> None:
    records = [{"prompt": f"q{n}", "how": {"temperature": n / 1000}} for n in range(1500)]
    source = write_jsonl(tmp_path / "q.jsonl", [*records, {"prompt": "last", "how": {"top_q": 1}}])
    done = synthia("run", source, *SCRIPTED, "--sampling-column", "how", "-o", "out")
    assert done.returncode == 2
    assert (
        "q.jsonl:1501: column 'how': 'top_q' is not a key of sampling; did you mean 'top_p'?" in done.stderr
    )
    assert not (tmp_path / "out").exists()


def test_what_a_row_says_reaches_the_engine_and_its_seed_the_output(synthia: Command, tmp_path: Path) -> None:
    says: list[dict[str, Any]] = [
        {},
        {"temperature": 0.1},
        {"temperature": 0.2},
        {"max_tokens": 2},
        {"seed": 5},
    ]
    records = [{"id": f"q{n}", "prompt": "Why?", "how": said} for n, said in enumerate([*says, {"seed": 5}])]
    source = write_jsonl(tmp_path / "q.jsonl", records)
    job = ("run", source, *SCRIPTED, "--id-column", "id", "-n", 2)
    plain = synthia(*job, "-o", "plain")
    for out, batch in (("wide", 64), ("narrow", 1)):
        own = synthia(*job, "--sampling-column", "how", "--set", f"engine.max_num_seqs={batch}", "-o", out)
        assert (plain.returncode, own.returncode) == (0, 0), plain.stderr + own.stderr
    before, now = (pq.read_table(tmp_path / out / "data").to_pylist() for out in ("plain", "wide"))
    texts = [[row["response"] for row in rows] for rows in (before, now)]
    assert texts[0][:2] == texts[1][:2], "what a row does not say is the job's"
    assert not set(texts[0][2:6]) & set(texts[1][2:6])
    assert [row["completion_tokens"] for row in now[6:8]] == [2, 2]
    assert [row["finish_reason"] for row in now[6:8]] == ["length", "length"]
    assert [row["seed"] for row in now[8:]] == [5, derive_own_seed(5, 1)] * 2
    assert texts[1][8:10] == texts[1][10:12], "the same prompt with the same seed"
    assert texts[1][8] != texts[1][9]
    assert [row["seed"] for row in now[:8]] == [row["seed"] for row in before[:8]]
    assert read_bytes_of_data(tmp_path / "wide") == read_bytes_of_data(tmp_path / "narrow")


def test_the_plan_counts_with_the_limits_of_the_rows(synthia: Command, tmp_path: Path) -> None:
    says = [{"max_tokens": 10}, {"max_tokens": "2K"}, {}]
    source = write_jsonl(tmp_path / "q.jsonl", [{"prompt": "Why?", "how": said} for said in says])
    job = (source, *SCRIPTED, "--max-tokens", "100", "--sampling-column", "how")
    planned = json.loads(synthia("plan", *job, "--json").stdout)
    assert planned["longest_output_tokens"] == 10 + 2048 + 100
    assert planned["settings"]["input.sampling_column"]["value"] == "how"
    shown = json.loads(synthia("preview", *job, "--json").stdout)
    assert [row["samples"][0]["room"] for row in shown["rows"]] == [10, 2048, 100]


def make_row(sampling: RowSampling | None, *follow_ups: str) -> Row:
    return Row(
        index=0, id="a", messages=(Message("user", "Why?"),), system=None, kept={}, line=1,
        follow_ups=follow_ups, sampling=sampling,
    )  # fmt: skip


def ask(sampling: RowSampling | None) -> Request:
    plan = PlanSpec(
        systems=(SystemText(name="none", text=""),), system_column=None, replace_own_system=True,
        num_samples=1, seed=3,
    )  # fmt: skip
    context = Context(max_model_len=1000, max_tokens=20, on_overflow="fail")
    (sample,) = expand_row(make_row(sampling), plan)
    return MultiTurnSession(Renderer(SynthiaFormat(), ByteTokenizer()), context).begin(sample)


def test_a_rows_stop_strings_stand_beside_those_of_the_prompt_format() -> None:
    request = ask(RowSampling(values={"stop": ("END",), "max_tokens": 7}))
    assert request.sampling == {"stop": ("END", "USER:")}
    assert request.max_tokens == 7
    assert ask(None).max_tokens is None
    blank = ask(RowSampling())
    assert (blank.max_tokens, blank.sampling, blank.seed) == (20, None, derive_seed(3, "a", "none", 0))


def test_rows_that_may_answer_longest_are_made_first() -> None:
    lengths = [(5, 10), (5, 400), (90, 10), (5, 30)]
    requests = [
        Request(ordinal=n, token_ids=b"x" * prompt, seed=n, max_tokens=most)
        for n, (prompt, most) in enumerate(lengths)
    ]
    dispatcher = Dispatcher(iter(requests), len(requests), has_generated=True)
    dispatcher.add_worker(0, 4)
    assert [request.ordinal for request in dispatcher.top_up(0, 1)] == [1, 2, 3, 0]


def test_a_seed_of_a_row_is_its_first_samples_and_the_root_of_the_others() -> None:
    assert derive_own_seed(7, 0) == 7
    assert len({derive_own_seed(7, n) for n in range(50)} | {derive_own_seed(8, n) for n in range(50)}) == 100
    assert all(0 <= derive_own_seed(2**63 - 1, n) < 2**63 for n in range(50))


def test_keys_that_are_refused_are_none_that_are_taken() -> None:
    assert not set(REFUSED) & set(Sampling.model_fields)


def test_a_pattern_is_no_shorter_at_its_longest_than_at_its_shortest() -> None:
    with pytest.raises(ValueError, match="at most max_pattern_size"):
        RepetitionDetection(max_pattern_size=2, min_pattern_size=3, min_count=2)
