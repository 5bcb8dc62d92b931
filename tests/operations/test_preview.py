"""`preview`: the prompts as engines get them, and answers that count."""

import json
import os
import pty
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, command_of, make_environment, read_bytes_of_data, read_call_log, write_jsonl
from inside import Answer, call, snapshot

from synthia_batch.cli.columns import FOLDED_CHARACTERS, FOLDED_LINES, fold, make_visible
from synthia_batch.storage.events import read_events

SCRIPTED = ("--engine", "scripted", "--pool", "local")
TWO = ("-s", "synthia", "-s", "You are a poet.")


@pytest.fixture
def synthia(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Any:
    """Run a command on scripted engines in this process and in `tmp_path`, with a call log `calls`."""
    monkeypatch.chdir(tmp_path)

    def run(command: str, *flags: str | Path) -> Answer:
        return call(capsys, command, *flags, *SCRIPTED, "--set", f"engine.call_log={tmp_path / 'calls'}")

    return run


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "q.jsonl", [{"question": f"What is {n} squared?"} for n in range(9)])


def read_samples(answer: Answer) -> list[dict[str, Any]]:
    assert answer.code == 0, answer.err
    return [sample for row in json.loads(answer.out)["rows"] for sample in row["samples"]]


def test_without_answers_nothing_is_written_and_nothing_started(
    synthia: Any, questions: Path, tmp_path: Path
) -> None:
    before = snapshot(tmp_path)
    shown = synthia("preview", questions, *TWO, "-n", "2")
    assert shown.code == 0, shown.err
    assert snapshot(tmp_path) == before
    assert "q.jsonl:1: row_index 0, id " in shown.out
    assert "  | <user>\n  | What is 1 squared?\n  | <assistant>\n" in shown.out
    assert "What is 2 squared?" not in shown.out
    assert shown.out.count("  | You are a poet.\n") == 2
    assert shown.err.startswith("system message: synthia and text-")
    assert shown.err.count("\n") == 1


def test_n_is_the_number_of_rows_and_the_samples_of_a_row_have_their_long_flag(
    synthia: Any, questions: Path
) -> None:
    samples = read_samples(synthia("preview", questions, "-n", "4", "--num-samples", "3", "--json"))
    assert len(samples) == 4
    assert all(sample["answer"] is None and sample["fault"] is None for sample in samples)


def test_the_prompt_is_that_of_the_run_token_by_token(synthia: Any, questions: Path) -> None:
    (sample,) = read_samples(synthia("preview", questions, "-s", "none", "-n", "1", "--json"))
    assert sample["prompt"] == "<user>\nWhat is 0 squared?\n<assistant>\n"
    assert sample["prompt_tokens"] == len(sample["prompt"])
    assert sample["room"] == 1024


def test_only_the_first_rows_are_read(synthia: Any, tmp_path: Path) -> None:
    source = tmp_path / "q.jsonl"
    source.write_text('{"question": "Why?"}\n{"question": "How?"}\n{"question": 3}\n')
    assert synthia("preview", source, "-n", "2").code == 0
    refused = synthia("preview", source, "-n", "3")
    assert (refused.code, "q.jsonl:3" in refused.err) == (2, True)


def test_rows_from_all_over_are_always_the_same(synthia: Any, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"question": f"Question {n}?"} for n in range(5000)])
    first = synthia("preview", source, "-n", "6", "--random", "--json")
    rows = [row["row_index"] for row in json.loads(first.out)["rows"]]
    assert len(rows) == 6
    assert rows[0] < 2500 < rows[-1]
    assert synthia("preview", source, "-n", "6", "--random", "--json").out == first.out


def test_what_will_fail_is_said_with_its_code(synthia: Any, tmp_path: Path) -> None:
    source = write_jsonl(
        tmp_path / "q.jsonl", [{"question": "long " * 100, "style": ""}, {"question": "Why?", "style": "odd"}]
    )
    shown = synthia("preview", source, "--set", "model.max_model_len=300", "--max-tokens", "64")
    assert shown.code == 0
    assert "[will fail: prompt_too_long: the prompt has " in shown.out
    (long, short) = read_samples(
        synthia(
            "preview", source, "-s", "none", "--set", "model.max_model_len=60", "--max-tokens", "64", "--json"
        )
    )
    assert (long["fault"]["code"], long["room"]) == ("prompt_too_long", 0)
    assert (short["fault"], short["room"]) == (None, 60 - short["prompt_tokens"])


def test_a_long_prompt_is_folded_in_the_middle_unless_full(synthia: Any, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"question": "begin " + "middle " * 900 + "end"}])
    folded = synthia("preview", source, "-s", "none").out
    assert re.search(r"\[[\d,]+ characters omitted; show them with --full\]", folded)
    assert "begin middle" in folded
    assert "middle end\n" in folded
    assert folded.count("middle") < 300
    assert synthia("preview", source, "-s", "none", "--full").out.count("middle") == 900


def test_folding_counts_what_it_leaves_out() -> None:
    assert fold("short\ntext") == "short\ntext"
    lines = "\n".join(str(number) for number in range(1000))
    shown = fold(lines)
    head, note, tail = re.split(r"\n\[([\d,]+) characters.*\]\n", shown)
    assert lines.startswith(head)
    assert lines.endswith(tail)
    assert len(shown.split("\n")) == FOLDED_LINES + 1
    assert int(note.replace(",", "")) == len(lines) - len(head) - len(tail)
    assert len(fold("x" * 10_000)) < FOLDED_CHARACTERS + 60


def test_what_a_terminal_would_obey_is_shown_instead(synthia: Any, tmp_path: Path) -> None:
    hostile = "a\x1b[2Jb\rc\u202ed\u200be"
    source = write_jsonl(tmp_path / "q.jsonl", [{"question": hostile}])
    shown = synthia("preview", source, "-s", "none").out
    assert "a\\x1b[2Jb\\rc\\u202ed\\u200be" in shown
    (sample,) = read_samples(synthia("preview", source, "-s", "none", "--json"))
    assert hostile in sample["prompt"], "JSON has it as it is"
    assert make_visible("日本 ä\n") == "日本 ä\n"


def test_the_answers_are_those_of_the_run_and_not_made_again(
    synthia: Any, questions: Path, tmp_path: Path
) -> None:
    flags = (*TWO, "--num-samples", "2", "-o", "out")
    shown = read_samples(synthia("preview", questions, *flags, "-n", "3", "--answers", "--json"))
    assert sorted(read_call_log(tmp_path / "calls")) == [0, 2, 4, 6, 8, 10]
    assert [sample["system"] for sample in shown[:2]] == ["synthia", shown[1]["system"]]
    done = synthia("run", questions, *flags)
    assert done.code == 0, done.err
    assert "resuming out: 6 of 36 samples are done" in done.err
    assert sorted(read_call_log(tmp_path / "calls")) == list(range(36))
    assert synthia("run", questions, *flags[:-1], "whole").code == 0
    assert read_bytes_of_data(tmp_path / "out") == read_bytes_of_data(tmp_path / "whole")

    import pyarrow.parquet as pq

    rows = pq.read_table(tmp_path / "out" / "data").to_pylist()
    assert [sample["answer"]["response"] for sample in shown] == [
        rows[n]["response"] for n in range(0, 12, 2)
    ]
    assert [sample["answer"]["finish_reason"] for sample in shown] == ["stop"] * 6


def test_a_second_preview_makes_only_what_is_new(synthia: Any, questions: Path, tmp_path: Path) -> None:
    first = synthia("preview", questions, "-n", "2", "--answers", "-o", "out")
    assert "generating 2 samples in out" in first.err
    assert "2 of 9 samples are done in out; `run` with the same flags generates the others" in first.err
    attempts = count_attempts(tmp_path / "out")
    again = synthia("preview", questions, "-n", "2", "--answers", "-o", "out")
    assert again.out == first.out
    assert "generating" not in again.err
    assert count_attempts(tmp_path / "out") == attempts, "nothing to make is no attempt"
    more = synthia("preview", questions, "-n", "3", "--answers", "-o", "out")
    assert "generating 1 sample in out, 2 more are done" in more.err
    assert sorted(read_call_log(tmp_path / "calls")) == [0, 1, 2]


def count_attempts(directory: Path) -> int:
    events = read_events(directory / ".synthia" / "events.jsonl")
    return sum(event["kind"] == "attempt_started" for event in events)


def test_a_complete_run_shows_what_it_has_and_starts_nothing(
    synthia: Any, questions: Path, tmp_path: Path
) -> None:
    flags = ("-o", "out", "--set", "engine.fail_every=2")
    assert synthia("run", questions, *flags).code == 0
    (tmp_path / "calls").unlink()
    before = snapshot(tmp_path / "out")
    shown = synthia("preview", questions, *flags, "-n", "2", "--answers")
    assert shown.code == 0, shown.err
    assert "[failed: scripted_failure] failed as scripted" in shown.out
    assert re.search(r"\[answer: \d+ tokens, stop\] \w+", shown.out)
    assert "the run is complete: out" in shown.err
    assert snapshot(tmp_path / "out") == before
    assert not (tmp_path / "calls").exists()


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_a_preview_of_failures_alone_exits_as_a_run_of_them(
    synthia: Any, questions: Path, flags: tuple[str, ...]
) -> None:
    fails = ("-o", "out", "--set", "engine.fail_every=1")
    shown = synthia("preview", questions, *fails, "-n", "2", "--answers", *flags)
    assert (shown.code, "what helps: synthia-batch failed out" in shown.err) == (3, True), shown.err
    assert synthia("preview", questions, *fails, "-n", "2").code == 0
    some = synthia("preview", questions, "-o", "some", "--set", "engine.fail_every=2", "-n", "2", "--answers")
    assert some.code == 0


def test_a_preview_of_all_rows_completes_the_run(synthia: Any, questions: Path, tmp_path: Path) -> None:
    shown = synthia("preview", questions, "-n", "100", "--answers", "-o", "out")
    assert shown.code == 0, shown.err
    assert "the run is complete: out" in shown.err
    assert "already complete" in synthia("run", questions, "-o", "out").err
    assert synthia("run", questions, "-o", "whole").code == 0
    assert read_bytes_of_data(tmp_path / "out") == read_bytes_of_data(tmp_path / "whole")


def test_a_run_that_was_killed_before_its_last_word_is_completed(
    synthia: Any, questions: Path, tmp_path: Path
) -> None:
    assert synthia("run", questions, "-o", "out").code == 0
    expected = read_bytes_of_data(tmp_path / "out")
    (tmp_path / "calls").unlink()
    (tmp_path / "out" / "manifest.json").unlink()
    shown = synthia("preview", questions, "-n", "1", "--answers", "-o", "out")
    assert shown.code == 0, shown.err
    assert "the run is complete: out" in shown.err
    assert read_bytes_of_data(tmp_path / "out") == expected
    assert not (tmp_path / "calls").exists()


def test_another_job_gets_another_directory_and_is_refused_in_this_one(
    synthia: Any, questions: Path, tmp_path: Path
) -> None:
    assert synthia("preview", questions, "-n", "1", "--answers", "-o", "out").code == 0
    before = snapshot(tmp_path / "out")
    refused = synthia("preview", questions, "-n", "1", "--answers", "-o", "out", "--seed", "5")
    assert (refused.code, "belongs to another job" in refused.err) == (4, True)
    assert snapshot(tmp_path / "out") == before
    for seed in ("0", "5"):
        assert synthia("preview", questions, "-n", "1", "--answers", "--seed", seed).code == 0
    assert len(list((tmp_path / "outputs").iterdir())) == 2


def test_a_refused_input_leaves_nothing_behind(synthia: Any, tmp_path: Path) -> None:
    source = tmp_path / "q.jsonl"
    source.write_text('{"question": "Why?"}\n{"question": 3}\n')
    refused = synthia("preview", source, "-n", "1", "--answers", "-o", "out")
    assert refused.code == 2, "answers are the run's, and the run reads all"
    assert not (tmp_path / "out").exists()


def test_a_conversation_is_played_and_shown_turn_by_turn(synthia: Any, tmp_path: Path) -> None:
    source = write_jsonl(
        tmp_path / "q.jsonl", [{"turns": [f"First {n}?", "Second?", "Third?"]} for n in range(4)]
    )
    plain = synthia("preview", source, "-n", "1").out
    assert "[follow-up] Second?" in plain
    played = synthia("preview", source, "-n", "1", "--answers", "-o", "out")
    assert played.code == 0, played.err
    order = ["First 0?", "[answer] ", "[follow-up] Second?", "[answer] ", "[follow-up] Third?", "[answer: "]
    position = 0
    for text in order:
        position = played.out.index(text, position) + len(text)
    assert (tmp_path / "calls").read_text().split() == ["0", "0.1", "0.2"]
    assert synthia("run", source, "-o", "out").code == 0
    assert len((tmp_path / "calls").read_text().split()) == 12
    assert synthia("run", source, "-o", "whole").code == 0
    assert read_bytes_of_data(tmp_path / "out") == read_bytes_of_data(tmp_path / "whole")


def test_special_tokens_are_shown_and_what_only_looks_like_one_is_told_apart(tmp_path: Path) -> None:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Tokenizers
    from tokenizers.decoders import ByteLevel as Decoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel

    from synthia_batch.core.types import Message
    from synthia_batch.models.prompts.formats import ChatFormat
    from synthia_batch.models.prompts.tokenizer import FastTokenizer, Renderer

    letters = sorted(ByteLevel.alphabet())
    made = Tokenizers(BPE(vocab={letter: n for n, letter in enumerate(letters)}, merges=[]))
    made.pre_tokenizer = ByteLevel(add_prefix_space=False)
    made.decoder = Decoder()
    made.add_special_tokens([AddedToken("<|im_start|>"), AddedToken("<|im_end|>")])
    made.save(str(tmp_path / "tokenizer.json"))
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    renderer = Renderer(ChatFormat(template, {}), FastTokenizer(tmp_path / "tokenizer.json"))
    for text, lookalikes in (("Why  is\tit så?", 0), ("Say <|im_end|> twice: <|im_end|>", 2)):
        shown = renderer.show(renderer.render([Message("user", text)]))
        assert shown.text == f"<|im_start|>user\n{text}<|im_end|>\n"
        assert shown.lookalikes == lookalikes


@pytest.mark.parametrize(("columns", "beside"), [(100, True), (60, False)])
def test_answers_are_side_by_side_on_a_wide_terminal(
    questions: Path, tmp_path: Path, columns: int, beside: bool
) -> None:
    command = command_of("preview", questions, *SCRIPTED, *TWO, "-n", "1", "--answers", "-o", "out")
    shown = run_on_terminal(command, tmp_path, columns)
    titles = [line for line in shown.splitlines() if "system synthia" in line]
    assert len(titles) == 1
    assert ("system text-" in titles[0]) is beside
    assert max(map(len, shown.splitlines())) <= columns or not beside
    answers = [line for line in shown.splitlines() if "[answer: " in line]
    assert len(answers) == (1 if beside else 2)


def run_on_terminal(command: list[str], directory: Path, columns: int) -> str:
    """Return what `command` writes to a terminal of so many columns."""
    ours, theirs = pty.openpty()
    environment = make_environment(COLUMNS=str(columns), PYTHONPATH=str(ROOT))
    process = subprocess.Popen(
        command,
        cwd=directory,
        env=environment,
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:  # Linux says so when the other end is closed.
        pass
    os.close(ours)
    assert process.wait(60) == 0
    return shown.decode().replace("\r\n", "\n")
