"""Secrets reach nobody but whom they are for: no file of a run, nothing printed, no list of processes."""

import base64
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import Command, command_of, make_environment, write_jsonl
from endpoints import MODEL, Call, Endpoint, Reply, fail

from synthia_batch.core.store_endpoints import find_endpoint

PLANTED = {
    "password of the input": "in-pass-1f0a9c",
    "signature of the input": "in-sign-8c11d2aa",
    "signature behind a redirect": "in-next-77ab10cd",
    "key of the endpoint": "sk-endpoint-4b6f2e",
    "key in the body": "sk-body-90cc31",
    "token in the body": "bearer-body-5ad7e0",
    "password of a notification": "mail-pass-d2e8b4",
    "token of a notification": "mail-token-6630fe",
    "address of a notification": "hook-whole-e1c75a",
    "key of a store": "AKIA-store-b8841f",
    "session of a store": "session-store-2f9d37",
    "token of the hub": "hf-hub-a0b3c9",
}
ROWS = [{"question": "Why?"}, {"question": "Refuse me"}, {"question": "Break"}]


@pytest.fixture(autouse=True)
def _no_key_and_no_proxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@contextmanager
def serve(answer: Any) -> Iterator[str]:
    """A web server on which `answer(handler)` answers each request; yields its host and port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        do_POST = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def reply(handler: BaseHTTPRequestHandler, status: int, content: bytes = b"", **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def guard_input(handler: BaseHTTPRequestHandler) -> None:
    """Give the rows to who has the password, by way of a redirect to a signed address."""
    known = base64.b64encode(f"me:{PLANTED['password of the input']}".encode()).decode()
    if handler.headers.get("Authorization") != f"Basic {known}":
        reply(handler, 401)
    elif PLANTED["signature of the input"] in handler.path:
        reply(handler, 302, Location=f"/rows.jsonl?X-Signature={PLANTED['signature behind a redirect']}")
    elif PLANTED["signature behind a redirect"] in handler.path:
        reply(handler, 200, "".join(json.dumps(row) + "\n" for row in ROWS).encode(), ETag='"1"')
    else:
        reply(handler, 403)


def list_command_lines() -> bytes:
    found = b""
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and int(process.name) != os.getpid():
            try:
                found += (process / "cmdline").read_bytes()
            except OSError:
                continue
    return found


def find_planted(text: bytes) -> list[str]:
    return [what for what, secret in PLANTED.items() if secret.encode() in text]


def read_files(*directories: Path) -> bytes:
    paths = [path for directory in directories for path in sorted(directory.rglob("*")) if path.is_file()]
    return b"".join(str(path).encode() + path.read_bytes() for path in paths)


@pytest.mark.own_python  # The arguments of its commands are looked for among those of all processes.
@pytest.mark.timeout(900)  # A dozen commands, one after the other.
def test_no_file_of_a_run_and_nothing_printed_has_a_secret(synthia: Command, tmp_path: Path) -> None:
    seen, sent = [], []

    def behave(call: Call, before: int) -> Reply | None:
        seen.append(list_command_lines())
        echo = json.dumps([call.key, call.body])
        if call.text == "Refuse me":
            return fail(400, f"refused: {echo}")
        return fail(500, f"broken: {echo}") if call.text == "Break" and not before else None

    secrets = PLANTED
    with (
        Endpoint(behave, key=secrets["key of the endpoint"]) as endpoint,
        serve(guard_input) as files,
        serve(lambda handler: (sent.append(handler.path), reply(handler, 200))) as mail,
    ):
        environment = {
            "ENDPOINT_KEY": secrets["key of the endpoint"],
            "BODY_KEY": secrets["key in the body"],
            "BODY_TOKEN": secrets["token in the body"],
            "HOOK": f"json://{mail}/{secrets['address of a notification']}",
            "AWS_ACCESS_KEY_ID": secrets["key of a store"],
            "AWS_SESSION_TOKEN": secrets["session of a store"],
            "HF_TOKEN": secrets["token of the hub"],
        }
        source = f"http://me:{secrets['password of the input']}@{files}/q.jsonl"
        job = (
            f"{source}?X-Signature={secrets['signature of the input']}",
            "--engine", "openai", "--model", MODEL, "--determinism", "fast", "--base-url", endpoint.url,
            "--set", "engine.api_key=${ENDPOINT_KEY}",
            "--set", "engine.extra_body.api_key=${BODY_KEY}",
            "--set", "engine.extra_body={user: {authorization: 'Bearer ${BODY_TOKEN}'}}",
            "--notify", f"json://me:{secrets['password of a notification']}@{mail}/",
            "--notify", f"json://{mail}/?+X-Token={secrets['token of a notification']}",
            "--notify", "${HOOK}", "-o", "out",
        )  # fmt: skip
        planned = [synthia("plan", *job, *flags, **environment) for flags in ((), ("--all", "--json"))]
        done = synthia("run", *job, "-v", **environment)
        calls = (
            ("status", "out"), ("failed", "out"), ("failed", "out", "--json"), ("verify", "out"),
            ("report", "out"), ("retry", "out"), ("retry", "out", "--trust"),
            ("export", "out", "--to", "messages"),
        )  # fmt: skip
        others = [synthia(*call, **environment) for call in calls]
    assert done.returncode == 0, done.stderr
    body = endpoint.calls[-1].body
    assert (body["api_key"], body["user"]) == (
        secrets["key in the body"],
        {"authorization": f"Bearer {secrets['token in the body']}"},
    )
    assert len(sent) == 3, "every notification arrived"
    printed = "".join(run.stdout + run.stderr for run in (*planned, done, *others)).encode()
    assert find_planted(printed) == []
    assert find_planted(b"".join(seen)) == []
    assert find_planted(read_files(tmp_path)) == []
    assert b"refused: [" in read_files(tmp_path / "out"), "the server's words are kept"
    assert f"http://...@{files}/q.jsonl?..." in planned[0].stdout


def test_a_plan_says_which_host_gets_which_variable(synthia: Command, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "q.jsonl", ROWS)
    with Endpoint() as endpoint:
        job = ("q.jsonl", "--engine", "openai", "--model", MODEL, "--determinism", "fast")
        planned = synthia(
            "plan", *job, "--base-url", endpoint.url, "--notify", "json://${MAIL}@example.org/x",
            "--notify", "slack://${A}/${B}", "--set", "engine.extra_body.api_key=${BODY}",
            OPENAI_API_KEY="sk-abcdef", MAIL="secret-mail", A="secret-a", B="secret-b", BODY="secret-body",
        )  # fmt: skip
    assert planned.returncode == 0, planned.stderr
    assert [line for line in planned.stdout.splitlines() if line.startswith("sends ")] == [
        f"sends BODY to 127.0.0.1:{endpoint.port} (engine.extra_body.api_key)",
        f"sends OPENAI_API_KEY to 127.0.0.1:{endpoint.port} (engine.base_url)",
        "sends MAIL to example.org (notify)",
        "sends A to slack (notify)",
        "sends B to slack (notify)",
    ]


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"])
def test_credentials_go_to_the_endpoint_whatever_variable_names_it(name: str) -> None:
    assert (
        find_endpoint("s3", {name: "http://store:9", "GOOGLE_BASE_URL": "http://other"}) == "http://store:9"
    )
    assert find_endpoint("gs", {name: "http://store:9"}) == ""


def test_doctor_shows_no_secret_of_an_address(synthia: Command, tmp_path: Path) -> None:
    address = f"https://me:{S}@example.org/q.jsonl?sig={S}"
    job = ("--engine", "openai", "-m", "m", "--base-url", f"http://example.org/v1?key={S}")
    done = synthia("doctor", address, *job, "--determinism", "fast", "--json")
    assert "example.org/q.jsonl" in done.stdout
    assert S not in done.stdout + done.stderr


S = "hunter2-planted"
WRONG: dict[str, tuple[str, ...]] = {
    "a written key": ("q.jsonl", "--engine", "openai", "-m", "m", "--set", f"engine.api_key={S}"),
    "a written key in the body": (
        "q.jsonl", "--engine", "openai", "-m", "m", "--base-url", "http://h/v1",
        "--set", f"engine.extra_body.api_key={S}",
    ),
    "a written key in a list of the body": (
        "q.jsonl", "--engine", "openai", "-m", "m", "--base-url", "http://h/v1",
        "--set", f"engine.extra_body={{authorization: ['Bearer {S}']}}",
    ),
    "a password in the endpoint's address": (
        "q.jsonl", "--engine", "openai", "-m", "m", "--base-url", f"http://me:{S}@h/v1",
    ),
    "an endpoint's address that is none": (
        "q.jsonl", "--engine", "openai", "-m", "m", "--base-url", f"httpx://me:{S}@h/v1",
    ),
    "an output's address": ("q.jsonl", "-o", f"https://me:{S}@h/x?sig={S}"),
    "a cluster's address": ("q.jsonl", "--ray-address", f"http://me:{S}@h:1"),
    "an input's address": (f"ftp://me:{S}@h/q.jsonl?sig={S}",),
    "a port that is no number": (f"http://me:{S}@127.0.0.1:x{S}/q.jsonl?sig={S}",),
    "a space in an address": (f"http://127.0.0.1:9/q {S}.jsonl?sig={S}",),
    "a section in one setting": ("q.jsonl", "--set", f"engine={{hf_tokens: 1, hf_token: {S}}}"),
    "a setting that is no YAML": ("q.jsonl", "--set", f"engine.hf_token=[{S}"),
    "an unknown flag": ("q.jsonl", f"--notifyy=json://me:{S}@h"),
}  # fmt: skip


@pytest.mark.parametrize("flags", WRONG.values(), ids=WRONG)
def test_a_wrong_value_is_refused_without_its_secret(
    synthia: Command, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    write_jsonl(tmp_path / "q.jsonl", ROWS)
    scripted = () if "openai" in flags else ("--engine", "scripted")
    done = synthia("run", *flags, *scripted, "--determinism", "fast", "-q")
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert S not in done.stderr.replace(f"127.0.0.1:x{S}", "").replace(f"q {S}.jsonl", "")
    assert "bug" not in done.stderr


def test_a_job_file_of_somebody_else_gets_no_secret(synthia: Command, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "q.jsonl", ROWS)
    shared = tmp_path / "shared.yaml"
    shared.write_text(
        "input: {path: q.jsonl}\nengine: {kind: openai, base_url: 'http://127.0.0.1:9/v1'}\n"
        "model: {name: m}\ndeterminism: fast\n"
    )
    mine = synthia("plan", "shared.yaml", OPENAI_API_KEY="sk-abcdef")
    assert mine.returncode == 0, mine.stderr
    shared.chmod(0o666)  # Everybody may have written it.
    found = synthia("plan", "shared.yaml", OPENAI_API_KEY="sk-abcdef")
    assert found.returncode == 2
    assert "shared.yaml:2:34: engine.base_url: OPENAI_API_KEY is not sent there" in found.stderr
    typed = synthia("plan", "shared.yaml", "--base-url", "http://127.0.0.1:9/v1", OPENAI_API_KEY="sk-abcdef")
    assert typed.returncode == 0, typed.stderr
    shared.write_text("input: {path: q.jsonl}\nengine: {kind: scripted}\nnotify: 'json://h/${SOME_TOKEN}'\n")
    found = synthia("plan", "shared.yaml", SOME_TOKEN="abcdefgh")
    assert found.returncode == 2
    assert "shared.yaml:3:9: notify: ${SOME_TOKEN} is not replaced" in found.stderr


def plant(directory: Path, **changes: Any) -> None:
    """Change the saved job of a run, as somebody can who hands on a run directory."""
    from synthia_batch.core.checksummed_json import encode_checksummed, read_checksummed

    path = directory / ".synthia/job.json"
    job = (read_checksummed(path) or {})["job"]
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        (job.setdefault(section, {}) if section else job)[name] = value
    path.write_bytes(encode_checksummed({"job": job}))


def test_a_run_directory_sends_nothing_by_itself(synthia: Command, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "q.jsonl", ROWS)
    sent: list[str] = []
    with serve(lambda handler: (sent.append(handler.path), reply(handler, 200))) as host:
        flags = ("--engine", "scripted", "--pool", "local", "--set", "engine.fail_every=2", "-o", "out")
        assert synthia("run", "q.jsonl", *flags).returncode == 0
        plant(
            tmp_path / "out", notify=[f"json://{host}/${{STOLEN}}"], engine__call_log=str(tmp_path / "log"),
            engine__hang_load_once=str(tmp_path / "made"),
        )  # fmt: skip
        for call in (("report", "out"), ("verify", "out"), ("verify", "out", "--rerun", "1")):
            assert synthia(*call, STOLEN="stolen-token").returncode == 0
        done = synthia("retry", "out", STOLEN="stolen-token")
        assert done.returncode == 0, done.stderr
        assert "not used of its saved job" in done.stderr
        assert "engine.call_log (" in done.stderr
        assert (sent, (tmp_path / "log").exists(), (tmp_path / "made").exists()) == ([], False, False)
        plant(tmp_path / "out", notify=[f"json://{host}/${{STOLEN}}"], engine__call_log=str(tmp_path / "log"))
        trusted = synthia("retry", "out", "--trust", STOLEN="stolen-token")
        assert trusted.returncode == 0, trusted.stderr
    assert (len(sent), (tmp_path / "log").exists()) == (1, True)


@pytest.mark.parametrize(
    ("key", "value"),
    [("input__path", "http://127.0.0.1:9/q.jsonl"), ("output", "s3://elsewhere/run")],
)
def test_an_address_in_a_run_directory_is_asked_for(
    synthia: Command, tmp_path: Path, key: str, value: str
) -> None:
    write_jsonl(tmp_path / "q.jsonl", ROWS)
    flags = ("--engine", "scripted", "--pool", "local", "--set", "engine.fail_every=2", "-o", "out")
    assert synthia("run", "q.jsonl", *flags).returncode == 0
    plant(tmp_path / "out", **{key: value})
    done = synthia("retry", "out")
    assert done.returncode == 2
    dotted = key.replace("__", ".")
    assert f"its saved job has {dotted} ({value})" in done.stderr
    assert f"add --trust if the run is yours, or give --set {dotted}=..." in done.stderr


def test_the_process_list_shows_no_secret_of_the_command_line(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "q.jsonl", ROWS)
    flags = ("--engine", "scripted", "--pool", "local", "--set", "engine.latency_ms=3000", "-o", "out")
    command = command_of("run", "q.jsonl", *flags, "--notify", f"json://me:{S}@127.0.0.1:9/")
    with subprocess.Popen(command, cwd=tmp_path, env=make_environment(), stderr=subprocess.PIPE) as run:
        while not (tmp_path / "out/.synthia/events.jsonl").exists():
            assert run.poll() is None
        shown = Path(f"/proc/{run.pid}/cmdline").read_bytes()
        run.terminate()
        run.communicate(timeout=60)
    assert S.encode() not in shown
    assert [part.rstrip() for part in shown.split(b"\0")][-4:] == [b"out", b"--notify", b"json://...", b""]


CONTROLS = "\x1b]0;owned\x07\x1b[31m\x9b\u202e"


def test_only_printable_characters_reach_the_terminal(synthia: Command, tmp_path: Path) -> None:
    name = f"q{CONTROLS}.jsonl"
    write_jsonl(tmp_path / name, ROWS)
    (tmp_path / "bad.jsonl").write_text('{"question": "a"}\n{"question"\n')
    (tmp_path / f"bad{CONTROLS}.jsonl").write_text('{"question": "a"}\n{"question"\n')
    job = (
        f'input: {{path: q.jsonl}}\nmodel: {{name: "m{CONTROLS.encode("unicode_escape").decode()}"}}\n'
        "engine: {kind: scripted}\n"
    )
    (tmp_path / "x.yaml").write_text(job)
    scripted = ("--engine", "scripted", "--pool", "local")

    def behave(call: Call, before: int) -> Reply:
        return fail(400, f"reason {CONTROLS}")

    runs = [
        synthia("plan", name, *scripted), synthia("plan", name, *scripted, "--json"),
        synthia("validate", name, *scripted), synthia("validate", f"bad{CONTROLS}.jsonl", *scripted),
        synthia("plan", "x.yaml"), synthia("run", name, *scripted, "-o", "out"), synthia("status", "out"),
        synthia("run", "bad.jsonl", f"--{CONTROLS}"), synthia("status", f"none{CONTROLS}"),
        synthia("run", name, *scripted, "-o", f"o{CONTROLS}", "-v"), synthia("status", f"o{CONTROLS}"),
    ]  # fmt: skip
    with Endpoint(behave) as endpoint:
        flags = ("--engine", "openai", "-m", MODEL, "--determinism", "fast", "--base-url", endpoint.url)
        runs.append(synthia("run", name, *flags, "-o", "e"))
        runs.append(synthia("run", name, *flags[:3], f"m{CONTROLS}", *flags[4:], "-o", "f"))
        runs.append(synthia("failed", "e"))
        runs.append(synthia("failed", "e", "--json"))
    for done in runs:
        text = (done.stdout + done.stderr).replace("\n", "").replace("\t", "")
        assert text.isprintable(), (done.args, ascii(text))
    assert json.loads(runs[1].stdout)["files"][0]["name"].endswith(".jsonl")


def test_a_redirect_leads_to_web_servers_only(synthia: Command, tmp_path: Path) -> None:
    secret = tmp_path / "secret.jsonl"
    write_jsonl(secret, ROWS)
    refused = {
        f"file://{secret}": "is not allowed",
        "ftp://127.0.0.1:9/q.jsonl": "is no http or https address",
    }
    for target, words in refused.items():
        with serve(lambda handler, to=target: reply(handler, 302, Location=to)) as host:
            done = synthia("validate", f"http://{host}/q.jsonl", "--engine", "scripted", "--pool", "local")
        assert done.returncode == 2
        assert words in done.stderr


def test_a_password_does_not_follow_a_redirect_to_another_host(synthia: Command, tmp_path: Path) -> None:
    seen: list[str | None] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        seen.append(handler.headers.get("Authorization"))
        reply(handler, 200, b'{"question": "Why?"}\n', ETag='"1"')

    with (
        serve(answer) as other,
        serve(lambda handler: reply(handler, 302, Location=f"http://{other}/q.jsonl")) as host,
    ):
        done = synthia("validate", f"http://me:{S}@{host}/q.jsonl", "--engine", "scripted", "--pool", "local")
    assert done.returncode == 0, done.stderr
    assert seen
    assert set(seen) == {None}
