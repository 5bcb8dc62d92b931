"""Job files: every fault is told at once, by file, line and column, with what to do."""

from pathlib import Path

import pytest
from conftest import NEEDS_VLLM, Command, skip_input_lines, write_jsonl

from synthia_batch.errors import UsageError
from synthia_batch.job.loading.job_file import MOST_BYTES, read_job_file
from synthia_batch.job.loading.merge import Layer, Merged, merge_layers, read_environment

FAULTY = """\
name: x
input:
  path: q.jsonl
  limit: all
sampling:
  temprature: 0.5
  stop: [a, {b: 1}]
  top_p: 3
temperature: 1
seed: 010
model: {revision: 1234, dtype: no, trust_remote_code: no}
name: y
system: ["say ${HOME}", [x]]
pool: 3
deadline: 7:30
num_samples:
engine:
notify: ['json://${HOOK}', {a: secret}]
lora: !!set {a, b}
"""
TOLD = """\
the job cannot be used:
  x.yaml:4:10: input.limit: Input should be a whole number such as 200, 32K or 1.5M (32K is 32,000), got 'all'
  x.yaml:6:3: sampling.temprature: unknown key. Did you mean 'temperature'?
  x.yaml:7:13: sampling.stop[1]: Input should be text, got {'b': 1}
  x.yaml:8:10: sampling.top_p: Input should be less than or equal to 1, got 3
  x.yaml:9:1: temperature: unknown key. Did you mean 'sampling.temperature'?
  x.yaml:10:7: seed: 010 may be meant as octal; write 10, or 0o10
  x.yaml:12:1: name: set a second time, first in line 1; remove one of the two
  x.yaml:13:10: system[0]: ${HOME} is replaced in secrets only (engine.api_key, engine.hf_token, notify), \
since a job's output must not depend on the environment; put the text into a file and use @FILE
  x.yaml:13:25: system[1]: Input should be text, got ['x']
  x.yaml:14:7: pool: Input should be a section, with its keys indented under it, got 3
  x.yaml:15:11: deadline: Input should be a duration such as 90s, 10m, 7h30m or 1d, got '7:30'
  x.yaml:16:1: num_samples: has no value; give it one, or remove the key
  x.yaml:18:28: notify[1]: Input should be text
  x.yaml:19:7: lora: the tag !!set is not supported; remove it
`synthia-batch run --help` lists the flags, `synthia-batch schema` the keys of a job file"""


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def merge_file(text: str) -> Merged:
    Path("x.yaml").write_text(text)
    return merge_layers([read_job_file(Path("x.yaml"))])


def refuse_file(text: str | bytes) -> str:
    content = text.encode() if isinstance(text, str) else text
    Path("x.yaml").write_bytes(content)
    with pytest.raises(UsageError) as refused:
        merge_layers([read_job_file(Path("x.yaml"))])
    return str(refused.value)


def test_every_fault_is_told_at_once_by_line_and_column() -> None:
    assert refuse_file(FAULTY) == TOLD


def test_faults_of_a_job_file_and_of_flags_are_told_together() -> None:
    Path("x.yaml").write_text("input: {path: q.jsonl}\nsede: 3\n")
    flags = Layer(origin="flag", values={"deadline": "x", "sampling": {"topp": 1}})
    with pytest.raises(UsageError) as refused:
        merge_layers([flags, read_job_file(Path("x.yaml"))])
    assert str(refused.value).splitlines()[1:-1] == [
        "  sampling.topp (flag): unknown key. Did you mean 'top_p'?",
        "  deadline (flag): Input should be a duration such as 90s, 10m, 7h30m or 1d, got 'x'",
        "  x.yaml:2:1: sede: unknown key. Did you mean 'seed'?",
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "input:\n\tpath: q.jsonl\n",
            "x.yaml:2:1: not valid YAML: found character '\\t' that cannot start any token; "
            "indent with spaces, not with tabs",
        ),
        (
            "system: @persona.txt\n",
            "x.yaml:1:9: not valid YAML: found character '@' that cannot start any token; "
            "quote it, as in '@persona.txt'",
        ),
        (
            "input:questions.jsonl\nname: x\n",
            "x.yaml:2:5: not valid YAML: a key cannot stand here; "
            "put a space behind a key's colon, quote a text that has ': ' in it, "
            "indent a section's keys alike",
        ),
        (
            "system: [synthia,\n  none\nname: x\n",
            "x.yaml:3:5: not valid YAML: expected ',' or ']', but got ':'; put a space behind a key's colon, "
            "quote a text that has ': ' in it, indent a section's keys alike",
        ),
        (
            "notify: [json://${HOOK}]\n",
            "x.yaml:1:18: not valid YAML: expected ',' or ']', but got '{'; "
            "quote a text that has { or } in it, as in '${TOKEN}'",
        ),
        (
            "a: 1\nname: 'x\n",
            "x.yaml:3:1: not valid YAML: found unexpected end of stream in what begins at line 2; "
            "close what was opened, a quote or a bracket",
        ),
        (
            "system: *star*\n",
            "x.yaml:1:9: not valid YAML: found undefined alias 'star*'; quote the text that begins with it; "
            "* marks an alias in YAML",
        ),
        (
            "name: a\n---\nname: b\n",
            "x.yaml:2:1: not valid YAML: but found another document; fix it and run again",
        ),
        (
            "%YAML 1.1\n---\nname: a\n",
            "x.yaml:1:1: job files are read as YAML 1.2; remove the line %YAML 1.1",
        ),
        ("", "x.yaml: the file is empty; `synthia-batch init INPUT -o x.yaml --force` fills it"),
        (
            "- a\n",
            "x.yaml:1:1: a job file is a mapping of keys to values, such as `name: quickstart`; "
            "see jobs/quickstart.yaml",
        ),
        ("[" * 3000, "x.yaml: nested too deeply for a job file; see jobs/quickstart.yaml"),
        (b"name: \xff\n", "x.yaml: not UTF-8 at byte 6; save it as UTF-8 and run again"),
        (
            "name: a\0\n",
            "x.yaml: not valid YAML: unacceptable character #x0000: special characters are not allowed in "
            '"<file>", position 7; remove that character',
        ),
        (
            "#" * (MOST_BYTES + 1),
            "x.yaml: 1,000,001 bytes are no job file; an input ends in .jsonl or .parquet",
        ),
    ],
)
def test_what_is_no_yaml_is_told_with_what_to_do(text: str | bytes, told: str) -> None:
    assert refuse_file(text) == told


def test_a_bomb_of_aliases_is_refused_before_it_goes_off() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    assert "more than 10,000 values with its aliases" in refuse_file("\n".join(lines))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("engine: {foo: &a [*a]}\n", "x.yaml:1:15: engine.foo[0]: the value contains itself"),
        ("<<: {seed: 1}\n", "x.yaml:1:1: <<: merge keys are not supported; write the keys out"),
        ("engine: {[a]: 1}\n", "x.yaml:1:10: engine: a key is one word; write `key: value`"),
        ("name: !mine a\n", "x.yaml:1:7: name: the tag !mine is not supported; remove it"),
        ("engine: {foo: .nan}\n", "x.yaml:1:15: engine.foo: nan is not a finite number"),
        ("deadline_seconds: 5\n", "x.yaml:1:1: deadline_seconds: unknown key. Did you mean 'deadline'?"),
        ("model:\n  max_tokens: 5\n", "x.yaml:2:3: model.max_tokens: unknown key. Did you mean"),
        ("xyzzy: 5\n", "x.yaml:1:1: xyzzy: unknown key.\n"),
        ("determinism: slow\n", "x.yaml:1:14: determinism: Input should be 'strict' or 'fast', got 'slow'"),
        ("stop_at: 700\n", "x.yaml:1:10: stop_at: Input should be a time of day such as 07:00 or 23:30"),
        ("max_failures: 0.01\n", "x.yaml:1:15: max_failures: Input should be a number of samples such as"),
    ],
)  # fmt: skip
def test_odd_yaml_is_told_by_its_place(text: str, told: str) -> None:
    assert told in refuse_file(f"{text}input: {{path: q.jsonl}}\n")


@pytest.mark.parametrize("text", ["!!set {seed}\n", "!mine {seed: 1}\n"])
def test_a_tag_of_the_whole_is_told_by_its_place(text: str) -> None:
    assert "x.yaml:1:1: the tag !" in refuse_file(text)


def test_yaml_surprises_nobody() -> None:
    job = merge_file(
        "input: {path: q.jsonl, id_column: on, limit: 1_000}\n"
        "model: {revision: 1e5, trust_remote_code: no}\n"
        "name: 2024-01-01\n"
        "system: [no]\n"
        "sampling: {stop: [7, 'b'], max_tokens: 1e3}\n"
        "seed: 0x1F\n"
        "stop_at: 07:00\n"
        "notify:\n"
        "# A section with nothing in it says nothing.\n"
        "pool:\n"
    ).job
    assert (job.input.id_column, job.input.limit) == ("on", 1000)
    assert (job.model.revision, job.model.trust_remote_code) == ("1e5", False)
    assert (job.name, job.system, job.seed, job.stop_at) == ("2024-01-01", ("no",), 31, "07:00")
    assert (job.sampling.stop, job.sampling.max_tokens) == (("7", "b"), 1000)
    assert (job.notify, job.pool.kind) == (None, "ray")


def test_anchors_may_be_used() -> None:
    job = merge_file("input: &i {path: q.jsonl}\nsystem: &s [a, b]\nsampling: {stop: *s}\n").job
    assert job.sampling.stop == job.system == ("a", "b")


def test_a_plan_can_tell_file_and_line_and_the_variable_that_said_it() -> None:
    Path("x.yaml").write_text("input:\n  path: q.jsonl\nsampling: {top_k: 3,\n  top_p: 0.5}\nsystem: [a]\n")
    environment = read_environment({"SYNTHIA_BATCH_SEED": "3", "RAY_ADDRESS": "ray:1"})
    merged = merge_layers([environment, read_job_file(Path("x.yaml"))])
    keys = ("input.path", "sampling.top_k", "sampling.top_p", "system", "seed", "pool.ray_address", "name")
    assert [merged.origins[key] for key in keys] == [
        "x.yaml:2",
        "x.yaml:3",
        "x.yaml:4",
        "x.yaml:5",
        "environment SYNTHIA_BATCH_SEED",
        "environment RAY_ADDRESS",
        "default",
    ]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "preset: synthia-8b\n",
            "error: x.yaml:4:9: --preset synthia-8b: no such preset; did you mean synthia-7b?\n",
        ),
        (
            "system: [synthia, sintia]\n",
            "error: x.yaml:4:19: there is no system message 'sintia'; did you mean",
        ),
        (
            "system: '@p.txt'\n",
            "error: x.yaml:4:9: the system message file p.txt cannot be read: No such file",
        ),
    ],
)
def test_a_name_that_is_none_is_told_by_its_place(
    synthia: Command, tmp_path: Path, said: str, told: str
) -> None:
    write_jsonl(tmp_path / "q.jsonl", [{"prompt": "Why?"}])
    rest = "engine: {kind: scripted}\npool: {kind: local}\ninput: {path: q.jsonl}\n"
    (tmp_path / "x.yaml").write_text(rest + said)
    done = synthia("validate", "x.yaml")
    assert (done.returncode, done.stderr[: len(told)]) == (2, told)


@NEEDS_VLLM
def test_an_engine_setting_that_is_none_is_told_by_its_place(synthia: Command, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "q.jsonl", [{"prompt": "Why?"}])
    (tmp_path / "x.yaml").write_text("input: {path: q.jsonl}\nengine:\n  max_num_seq: 3\n")
    done = synthia("validate", "x.yaml")
    assert (done.returncode, skip_input_lines(done.stderr)) == (
        2,
        "error: x.yaml:3:16: engine.max_num_seq: vLLM has no such setting; did you mean "
        "engine.max_num_seqs?\n",
    )
    (tmp_path / "x.yaml").write_text("input: {path: q.jsonl}\nengine:\n  hf_token: '${HUB_TOKEN}'\n")
    unset, done = synthia("plan", "x.yaml"), synthia("plan", "x.yaml", HUB_TOKEN=SECRET)
    assert "engine.hf_token: the environment variable HUB_TOKEN is not set" in unset.stderr
    assert (done.returncode, SECRET in done.stdout) == (0, False), done.stderr
    assert "${HUB_TOKEN}  (x.yaml:3)" in done.stdout


SECRET = "hunter2-of-the-hook"


def read_everything(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file())


@pytest.mark.parametrize("hook", ["json://${HOOK_TOKEN}@127.0.0.1:9/", "${HOOK_TOKEN}"])
def test_a_secret_is_named_and_stands_nowhere(synthia: Command, tmp_path: Path, hook: str) -> None:
    write_jsonl(tmp_path / "q.jsonl", [{"prompt": "Why?"}])
    kinds = "engine: {kind: scripted}\npool: {kind: local}\n"
    (tmp_path / "x.yaml").write_text(f"input: {{path: q.jsonl}}\n{kinds}notify: '{hook}'\n")
    unset = synthia("plan", "x.yaml")
    assert (unset.returncode, unset.stderr) == (
        2,
        "error: notify: the environment variable HOOK_TOKEN is not set; `export HOOK_TOKEN=...`, then run "
        "again\n",
    )
    secret = SECRET if "://" in hook else f"json://{SECRET}@127.0.0.1:9/"
    planned = synthia("plan", "x.yaml", "--json", HOOK_TOKEN=secret)
    done = synthia("run", "x.yaml", "-v", "-o", "out", HOOK_TOKEN=secret)
    assert (planned.returncode, done.returncode) == (0, 0), done.stderr
    said = planned.stdout + planned.stderr + done.stdout + done.stderr
    assert SECRET not in said
    assert SECRET.encode() not in read_everything(tmp_path / "out")
    kept = (tmp_path / "out/.synthia/job.json").read_text()
    # What is more than a reference may hold a secret as well.
    assert ("${HOOK_TOKEN}" in kept) == (hook == "${HOOK_TOKEN}")
    assert ("${HOOK_TOKEN}" in planned.stdout) == (hook == "${HOOK_TOKEN}")


def test_a_secret_that_is_written_out_is_neither_shown_nor_kept(synthia: Command, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "q.jsonl", [{"prompt": "Why?"}])
    job = ("q.jsonl", "--engine", "scripted", "--pool", "local", "--notify", f"json://{SECRET}@127.0.0.1:9")
    for command in (("plan",), ("plan", "--json"), ("run", "-v", "-o", "out")):
        done = synthia(command[0], *job, *command[1:])
        assert done.returncode == 0, done.stderr
        assert SECRET not in done.stdout + done.stderr
    assert "json://..." in synthia("plan", *job).stdout
    assert SECRET.encode() not in read_everything(tmp_path / "out")


def test_a_wrong_secret_is_refused_without_being_shown() -> None:
    assert SECRET not in refuse_file(f"input: {{path: a}}\nnotify: {{url: {SECRET}}}\n")
