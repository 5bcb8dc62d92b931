"""Every error that a new user meets in the first hour: its whole text, and what to do next in it."""

import json
import os
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import (
    NEEDS_VLLM,
    ROOT,
    Command,
    command_of,
    make_environment,
    open_small_disk,
    read_call_log,
    skip_input_lines,
    write_jsonl,
)

from synthia_batch.core.hardware import detect_device, total_memory_bytes

SCRIPTED = ("--engine", "scripted", "--pool", "local")
RUN = ("run", "q.jsonl", *SCRIPTED)
KEYS = "`synthia-batch run --help` lists the flags, `synthia-batch schema` the keys of a job file\n"
REFUSED = "error: the input cannot be used; nothing was started:\n"
FIX = "fix the input, then run the same command again; --on-bad-row fail sets bad rows aside\n"
FORMATS = (
    "supported formats: JSONL (.jsonl, .ndjson), Parquet (.parquet), CSV (.csv), TSV (.tsv), "
    "JSON (.json), Excel (.xlsx, .xlsm), folders of .txt, directories of complete runs; compressed: .gz, .zst"
)
TMPFS_KIB = 64
ON_CPUS = pytest.mark.skipif(detect_device() == "cuda", reason="this machine has GPUs")


@dataclass(frozen=True)
class Slip:
    """A command as it was typed, and what it is answered. `files` are beside q.jsonl, by name."""

    name: str
    typed: tuple[str, ...]
    told: str
    code: int = 2
    files: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


SLIPS = [
    Slip(
        "no such file",
        ("run", "nowhere.jsonl"),
        "error: nowhere.jsonl: there is no such file; check the path\n",
    ),
    Slip(
        "a file of almost that name",
        ("run", "questionz.jsonl"),
        "error: questionz.jsonl: there is no such file; check the path; did you mean questions.jsonl?\n",
        files={"questions.jsonl": "{}"},
    ),
    Slip(
        "a directory without rows",
        ("run", "empty"),
        f"error: empty: the directory holds no files of rows (not read: notes.md); {FORMATS}\n",
        files={"empty/notes.md": "none"},
    ),
    Slip(
        "a sheet",
        ("run", "q.ods"),
        f"error: q.ods: unknown format; {FORMATS}. Save the sheet as .xlsx or CSV\n",
        files={"q.ods": "PK"},
    ),
    Slip(
        "a file that is only called packed",
        ("run", "q.jsonl.gz"),
        f"{REFUSED}  q.jsonl.gz: expected a gzip file by its name, got other content\n{FIX}",
        files={"q.jsonl.gz": "x"},
    ),
    Slip(
        "an empty input",
        ("run", "empty.jsonl", *SCRIPTED),
        f"{REFUSED}  empty.jsonl: the file is empty\n{FIX}",
        files={"empty.jsonl": ""},
    ),
    Slip(
        "nothing but blank lines",
        ("run", "blank.jsonl", *SCRIPTED),
        f"{REFUSED}  blank.jsonl: there are no rows, only blank lines\n{FIX}",
        files={"blank.jsonl": "\n\n"},
    ),
    Slip(
        "faults in the input",
        ("run", "bad.jsonl", *SCRIPTED),
        f"{REFUSED}  bad.jsonl:1: not valid JSON: Expecting ',' delimiter, at column 18\n"
        f"  bad.jsonl:2: column 'prompt' must be a string, not a number\n{FIX}",
        files={"bad.jsonl": '{"prompt": "Why?"\n{"prompt": 3}\n'},
    ),
    Slip(
        "no column of a known name",
        ("run", "odd.jsonl", *SCRIPTED),
        "error: odd.jsonl: none of the columns messages, turns, prompt, question, instruction, input, text "
        "exists; name one with --prompt-column, --messages-column or --turns-column. (columns: frage, "
        "nr)\n",
        files={"odd.jsonl": '{"frage": "Warum?", "nr": 1}\n'},
    ),
    Slip(
        "a wrong column",
        (*RUN, "--prompt-column", "qestion"),
        "error: q.jsonl: no column 'qestion'; did you mean 'question'? (columns: question)\n",
    ),
    Slip(
        "a column to keep that is not there",
        (*RUN, "--keep-columns", "topic"),
        "error: q.jsonl: no column 'topic' (columns: question)\n",
    ),
    Slip(
        "no input at all",
        ("run",),
        f"error: the job cannot be used:\n  input: not set; name an input file or a job file\n{KEYS}",
    ),
    Slip(
        "no such model on a machine without the Hub",
        ("run", "q.jsonl", "-m", "org/no-such-model"),
        "error: --model org/no-such-model: not a local directory, and not available from the Hub: "
        "HF_HUB_OFFLINE is set, and the model is not in the Hub's cache; unset it, or first download the "
        "model with `hf download org/no-such-model`; or run without --model for the embedded model\n",
        environment={"HF_HUB_OFFLINE": "1"},
    ),
    Slip(
        "no such model directory",
        ("run", "q.jsonl", "-m", "./nowhere"),
        "error: ./nowhere: no such directory or file; name an existing one, or a Hub repository\n",
    ),
    Slip(
        "no such preset",
        (*RUN, "--preset", "synthia-8b"),
        "error: --preset synthia-8b: no such preset; did you mean synthia-7b?\n",
    ),
    Slip(
        "no such system message",
        (*RUN, "-s", "sintia"),
        "error: there is no system message 'sintia'; did you mean synthia? The "
        "library has synthia, tree-of-thoughts, tree-of-thoughts-v3, superintelligence, none. For the word "
        "itself use text:sintia, for a file @sintia.txt\n",
    ),
    Slip(
        "no such system message file",
        (*RUN, "-s", "@persona.txt"),
        "error: the system message file persona.txt cannot be read: No such file or directory; check the "
        "path\n",
    ),
    Slip(
        "an unknown command",
        ("rum", "q.jsonl"),
        "Usage: python -m synthia_batch [OPTIONS] COMMAND [ARGS]...\n"
        "Try 'python -m synthia_batch --help' for help.\n\n"
        "Error: No such command 'rum'. Did you mean 'run'?\n",
    ),
    Slip(
        "an unknown flag",
        ("run", "q.jsonl", "--temprature", "1"),
        "Usage: python -m synthia_batch run [OPTIONS] [INPUT|JOB.yaml]...\n"
        "Try 'python -m synthia_batch run --help' for help.\n\n"
        "Error: No such option: --temprature (Possible options: --chat-template, --state, --temperature)\n",
    ),
    Slip(
        "a flag's value that is none",
        ("run", "q.jsonl", "--temperature", "hot"),
        "Usage: python -m synthia_batch run [OPTIONS] [INPUT|JOB.yaml]...\n"
        "Try 'python -m synthia_batch run --help' for help.\n\n"
        "Error: Invalid value for '--temperature': Input should be a valid number, unable to parse string as "
        "a number\n",
    ),
    Slip(
        "values that no job can have, all at once",
        (*RUN, "--deadline", "soon", "--stop-at", "25", "--max-failures", "lots", "--metrics-port", "0"),
        "error: the job cannot be used:\n"
        "  max_failures (flag): Input should be a number of samples such as 500, or a share of them such as "
        "1%, got 'lots'\n"
        "  deadline (flag): Input should be a duration such as 90s, 10m, 7h30m or 1d, got 'soon'\n"
        "  stop_at (flag): Input should be a time of day such as 07:00 or 23:30, got '25'\n"
        f"  metrics_port (flag): Input should be greater than or equal to 1, got 0\n{KEYS}",
    ),
    Slip(
        "an unknown key",
        (*RUN, "--set", "sampling.temprature=1"),
        "error: the job cannot be used:\n"
        f"  sampling.temprature (flag): unknown key. Did you mean 'temperature'?\n{KEYS}",
    ),
    Slip(
        "a key without a value",
        (*RUN, "--set", "seed"),
        "error: --set 'seed': write it as key=value, such as --set sampling.min_p=0.05\n",
    ),
    Slip(
        "no such job file",
        ("run", "nowhere.yaml"),
        "error: nowhere.yaml: cannot be read: No such file or directory; name an existing job file, or write "
        "one with `synthia-batch init INPUT -o FILE`\n",
    ),
    Slip(
        "a tab in a job file",
        ("run", "a.yaml"),
        "error: a.yaml:2:1: not valid YAML: found character '\\t' that cannot start any token; indent with "
        "spaces, not with tabs\n",
        files={"a.yaml": "input:\n\tpath: q.jsonl\n"},
    ),
    Slip(
        "unknown and doubled keys in a job file",
        ("run", "a.yaml"),
        "error: the job cannot be used:\n"
        "  a.yaml:3:1: temperature: unknown key. Did you mean 'sampling.temperature'?\n"
        f"  a.yaml:4:1: seed: set a second time, first in line 2; remove one of the two\n{KEYS}",
        files={"a.yaml": "input: {path: q.jsonl}\nseed: 1\ntemperature: 1\nseed: 2\n"},
    ),
    Slip(
        "a secret that is not set",
        ("run", "a.yaml", *SCRIPTED),
        "error: notify: the environment variable NOTIFY_URL is not set; `export NOTIFY_URL=...`, then run "
        "again\n",
        files={"a.yaml": "input: {path: q.jsonl}\nnotify: '${NOTIFY_URL}'\n"},
    ),
    Slip(
        "no Ray at the address",
        ("run", "q.jsonl", "--engine", "scripted", "--ray-address", "127.0.0.1:1"),
        "error: no Ray cluster at 127.0.0.1:1: [Errno 111] Connection refused. Check that the cluster is up "
        "(`ray status --address 127.0.0.1:1`) and that this is the port of its head (6379 unless `ray start "
        "--port` set another; not the dashboard's 8265 or Ray Client's 10001). Without --ray-address and "
        "RAY_ADDRESS the job starts its own Ray\n",
        code=69,
    ),
    Slip(
        "an output that is a file",
        (*RUN, "-o", "q.jsonl"),
        "error: -o q.jsonl: expected a directory, got a file; name a directory\n",
    ),
    Slip(
        "an output that is somebody else's",
        (*RUN, "-o", "mine"),
        "error: -o mine: expected a run or an empty directory, got other files\n",
        files={"mine/notes.txt": "x"},
    ),
    Slip(
        "the status of no run",
        ("status", "nowhere"),
        "error: nowhere: not a run directory; name one under outputs/\n",
    ),
]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "q.jsonl", [{"question": "Why?"}, {"question": "How?"}])
    return tmp_path


@pytest.mark.parametrize("slip", SLIPS, ids=lambda slip: slip.name)
def test_a_slip_is_told_with_what_to_do(synthia: Command, home: Path, slip: Slip) -> None:
    for name, text in slip.files.items():
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).write_text(text)
    done = synthia(*slip.typed, **slip.environment)
    assert (skip_input_lines(done.stderr), done.returncode, done.stdout) == (slip.told, slip.code, "")
    if slip.code == 2:
        assert not (home / "outputs").exists(), "nothing was started"


def test_a_port_that_is_taken_is_told_before_anything_starts(synthia: Command, home: Path) -> None:
    pytest.importorskip("prometheus_client")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = synthia(*RUN, "--metrics-port", str(port))
    assert (done.returncode, skip_input_lines(done.stderr)) == (
        2,
        f"error: --metrics-port {port}: Address already in use on 127.0.0.1; nothing was started\n"
        "  another run may serve its metrics there: choose another port\n",
    )


def test_changed_settings_are_told_by_field(synthia: Command, home: Path) -> None:
    assert synthia(*RUN, "-o", "out").returncode == 0
    done = synthia(*RUN, "-o", "out", "--seed", "5", "--top-k", "7")
    assert (done.returncode, skip_input_lines(done.stderr)) == (
        4,
        "error: out belongs to another job; nothing was touched. What differs:\n"
        "  sampling.top_k: 50 before, 7 now\n"
        "  seed: 0 before, 5 now\n"
        "run without -o for a new directory, or repeat the job as it was\n",
    )


def test_another_run_on_the_directory_is_named(synthia: Command, home: Path) -> None:
    write_jsonl(home / "q.jsonl", [{"question": f"What is {n}?"} for n in range(300)])
    slow = [f"engine.{what}" for what in ("latency_ms=500", "max_num_seqs=4", "call_log=calls")]
    typed = command_of(*RUN, "-o", "out", *(word for what in slow for word in ("--set", what)))
    first = subprocess.Popen(typed, cwd=home, env=make_environment(), stderr=subprocess.DEVNULL)
    try:
        while not read_call_log(home / "calls"):
            assert first.poll() is None
            time.sleep(0.02)
        second = synthia(*RUN, "-o", "out")
        owner = f"pid {first.pid} on {socket.gethostname()}, since "
        assert second.returncode == 4
        assert skip_input_lines(second.stderr).startswith(f"error: out is in use by {owner}20"), (
            skip_input_lines(second.stderr)
        )
        assert "nothing was touched" in skip_input_lines(second.stderr)
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == 75
    finally:
        first.kill()
        first.wait()


@NEEDS_VLLM
@ON_CPUS
def test_without_gpus_an_engine_over_two_of_them_is_refused(synthia: Command, home: Path) -> None:
    done = synthia("run", "q.jsonl", "--tensor-parallel-size", "2")
    assert (done.returncode, skip_input_lines(done.stderr)) == (
        2,
        "error: the job requires an engine of 2 GPUs, but the installed vLLM runs on CPUs, where 2 "
        "processes cannot be strictly deterministic; leave out --tensor-parallel-size and "
        "--pipeline-parallel-size, use --determinism fast, or a machine with GPUs (`synthia-batch doctor`)\n",
    )


@NEEDS_VLLM
@ON_CPUS
@pytest.mark.skipif(total_memory_bytes() > 138e9, reason="this machine's memory holds a 70B model")
def test_a_model_beyond_the_memory_is_refused_before_it_is_fetched(synthia: Command, home: Path) -> None:
    memory = f"{total_memory_bytes() / 1e9:.0f} GB"
    told = (
        f"error: migtissera/Synthia-70B-v1.1: its weights take 138 GB, this machine has {memory} of memory "
        "and no GPU that the installed vLLM computes on; nothing was fetched. Run it on 2 GPU(s) of 80 GB, "
        "take a "
        "smaller or quantized model (`synthia-batch presets`), or rehearse the job with --engine scripted "
        "--pool local\n"
    )
    for typed in (("q.jsonl", "-m", "migtissera/Synthia-70B-v1.1"), (ROOT / "jobs/synthia-70b.yaml",)):
        one_card = synthia("run", *typed, "--tensor-parallel-size", "1", "--set", "stop_at=null")
        assert (one_card.returncode, skip_input_lines(one_card.stderr)) == (2, told)
    doctor = synthia("doctor", "q.jsonl", "-m", "migtissera/Synthia-70B-v1.1", "--json", HF_HUB_OFFLINE="1")
    checks = {check["name"]: check for check in json.loads(doctor.stdout)["checks"]}
    assert (doctor.returncode, checks["fit"]["state"]) == (2, "bad")
    assert "does not fit; use a smaller or quantized model, or GPUs" in checks["fit"]["text"]


@NEEDS_VLLM
@ON_CPUS
@pytest.mark.skipif(total_memory_bytes() > 138e9, reason="this machine's memory holds a 70B model")
def test_a_directory_of_a_cards_name_is_judged_by_what_is_in_it(synthia: Command, home: Path) -> None:
    (home / "migtissera" / "Synthia-70B-v1.1").mkdir(parents=True)
    done = synthia("plan", "q.jsonl", "-m", "migtissera/Synthia-70B-v1.1")
    assert done.returncode == 2
    assert "its weights take" not in skip_input_lines(done.stderr)
    assert "config.json" in skip_input_lines(done.stderr)


def test_a_full_disk_ends_the_run_and_says_that_it_can_go_on(synthia: Command, home: Path) -> None:
    room = home / "small-disk"
    with open_small_disk(room, TMPFS_KIB):
        write_jsonl(home / "q.jsonl", [{"question": f"What is {n}? " * 20} for n in range(400)])
        planned = synthia("plan", "q.jsonl", *SCRIPTED, "-o", "small-disk/out")
        assert f"warning: not enough disk space at {room}" in planned.stdout
        done = synthia(*RUN, "-q", "-o", "small-disk/out")
        assert done.returncode == 74, skip_input_lines(done.stderr)
        assert skip_input_lines(done.stderr).startswith("error: could not "), skip_input_lines(done.stderr)
        assert skip_input_lines(done.stderr).endswith(
            ": No space left on device\n  free space on this file system; nothing finished is lost: run "
            "the same "
            "command again to resume\n"
        )


def test_an_unwritable_output_is_told(synthia: Command, home: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (home / "locked").mkdir(mode=0o500)
    done = synthia(*RUN, "-o", "locked/out")
    assert (done.returncode, "Permission denied" in skip_input_lines(done.stderr)) == (74, True)
