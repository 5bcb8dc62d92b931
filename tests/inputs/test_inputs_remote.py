"""Inputs on a web server, in a bucket and on the Hub, each on loopback, and `datasets` directories."""

import gzip
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow.parquet as pq
import pytest
from blake3 import blake3
from conftest import Command
from s3 import BUCKET, S3, Fault, serve_s3
from test_gs import Server, Stored

from synthia_batch.inputs.fetch.cache import find_copies
from synthia_batch.inputs.remote.hub import select_rows

ENGINE = ("--engine", "scripted", "--pool", "local", "-q", "--max-tokens", "4")
TEXT = "".join(json.dumps({"question": f"What is {n}?"}) + "\n" for n in range(2000)).encode()


@pytest.fixture(autouse=True)
def _own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)


@dataclass(slots=True)
class Web:
    """Files by path, and what is done to the next requests: a status, or bytes after which it breaks."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    faults: list[tuple[str, int]] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)
    has_ranges: bool = True
    has_versions: bool = True
    has_lengths: bool = True


@contextmanager
def serve(web: Web) -> Iterator[Web]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            web.asked.append((self.command, self.path))
            content = web.files.get(self.path, web.files.get(path))
            kind, number = web.faults.pop(0) if web.faults else ("", 0)
            if kind == "status" or content is None:
                self.send_response(number or 404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start, status = 0, 200
            asked = self.headers.get("Range")
            if asked and web.has_ranges:
                first, _, last = asked.removeprefix("bytes=").partition("-")
                start, status = int(first), 206
                part = content[start : int(last) + 1 if last else None]
            else:
                part = content
            self.send_response(status)
            if web.has_lengths:
                self.send_header("Content-Length", str(len(part)))
            else:
                self.close_connection = True
            if status == 206:
                self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(content)}")
            if web.has_versions:
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.end_headers()
            self.wfile.write(part[:number] if kind == "break" else part)
            if kind == "break":
                self.close_connection = True

        do_HEAD = do_GET

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    web.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def web() -> Iterator[Web]:
    with serve(Web(files={"/q.jsonl": TEXT, "/q.jsonl.gz": gzip.compress(TEXT)})) as running:
        yield running


def count_rows(directory: Path) -> int:
    return int(pq.read_table(directory / "data", columns=["id"]).num_rows)


def test_a_file_on_a_web_server_is_fetched_once_and_is_the_job_that_it_is_here(
    synthia: Command, tmp_path: Path, web: Web
) -> None:
    done = synthia("run", f"{web.url}/q.jsonl.gz?token=secret", "-o", "out", *ENGINE)
    assert done.returncode == 0, done.stderr
    assert f"{web.url}/q.jsonl.gz: downloaded" in done.stderr
    assert count_rows(tmp_path / "out") == 2000
    asked = len(web.asked)
    again = synthia("run", f"{web.url}/q.jsonl.gz?token=secret", "-o", "out", *ENGINE)
    assert "already complete" in again.stderr
    assert len(web.asked) == asked + 1, "one look, and nothing is fetched again"
    other = synthia("run", f"{web.url}/q.jsonl.gz?token=other", "-o", "out", *ENGINE)
    assert "already complete" in other.stderr, "the same content is the same job"
    assert "downloaded" in other.stderr
    (tmp_path / "q.jsonl").write_bytes(TEXT)
    assert "already complete" in synthia("run", "q.jsonl", "-o", "out", *ENGINE).stderr
    web.files["/q.jsonl.gz"] = gzip.compress(TEXT.replace(b"What", b"Who"))
    changed = synthia("run", f"{web.url}/q.jsonl.gz", "-o", "out", *ENGINE)
    assert changed.returncode == 4
    assert "input.digest" in changed.stderr


@pytest.mark.parametrize(
    ("faults", "has_ranges"),
    [
        ([("status", 503), ("", 0), ("break", 5000), ("break", 0), ("status", 429)], True),
        ([("", 0), ("break", 5000)], False),
    ],
    ids=["goes on where it broke", "begins again without ranges"],
)
def test_a_download_that_breaks_is_taken_up_and_whole_in_the_end(
    synthia: Command, tmp_path: Path, web: Web, faults: list[tuple[str, int]], has_ranges: bool
) -> None:
    web.faults, web.has_ranges = faults, has_ranges
    done = synthia("validate", f"{web.url}/q.jsonl", *ENGINE[:-3])
    assert (done.returncode, f"{web.url}/q.jsonl: 2,000 rows, no faults" in done.stdout) == (0, True), (
        done.stderr
    )
    (kept,) = find_copies().glob("*/q.jsonl")
    assert kept.read_bytes() == TEXT


@pytest.mark.long
def test_a_download_that_never_comes_whole_is_no_copy(synthia: Command, tmp_path: Path, web: Web) -> None:
    web.faults = [("", 0), *[("break", 0)] * 20]
    done = synthia("validate", f"{web.url}/q.jsonl", *ENGINE[:-3])
    assert done.returncode == 2
    assert "download failed 6 times: expected" in done.stderr
    assert not [path for path in find_copies().rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/no.jsonl", "the server answers 404"),
        ("/*.jsonl", "a web server has no listing for a pattern"),
        ("/q.jsonl/", "no such file, and no files of rows below it"),
    ],
)
def test_what_a_web_server_does_not_have_is_said(synthia: Command, web: Web, path: str, message: str) -> None:
    done = synthia("validate", f"{web.url}{path}", *ENGINE[:-3])
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_version_a_file_is_fetched_anew_and_is_the_same_job(
    synthia: Command, tmp_path: Path, web: Web
) -> None:
    web.has_versions = False
    assert synthia("run", f"{web.url}/q.jsonl", "-o", "out", *ENGINE).returncode == 0
    again = synthia("run", f"{web.url}/q.jsonl", "-o", "out", *ENGINE)
    assert "already complete" in again.stderr
    assert "downloaded" in again.stderr


ROWS_OF = {query: f'{{"prompt": "Row {query}?"}}\n'.encode() for query in ("id=1", "id=2")}


def test_addresses_that_differ_in_their_query_are_files_of_their_own(
    synthia: Command, tmp_path: Path, web: Web
) -> None:
    # As a server of exports may have it: one date, one length.
    web.files = {f"/rows.jsonl?{query}": content for query, content in ROWS_OF.items()}
    web.has_versions = False
    urls = [f"{web.url}/rows.jsonl?{query}" for query in ROWS_OF]
    done = synthia("plan", *urls, "--json", *ENGINE[:-3])
    assert done.returncode == 0, done.stderr
    assert [file["name"] for file in json.loads(done.stdout)["files"]] == [
        f"{web.url}/rows.jsonl#1",
        f"{web.url}/rows.jsonl#2",
    ]
    kept = {path.read_bytes() for path in find_copies().glob("*/rows.jsonl")}
    assert kept == set(ROWS_OF.values())


def test_no_part_of_an_address_that_may_be_secret_is_in_the_cache(synthia: Command, web: Web) -> None:
    done = synthia("validate", f"{web.url}/q.jsonl?token=hunter2", *ENGINE[:-3])
    assert done.returncode == 0, done.stderr
    missing = synthia("validate", f"{web.url}/q.jsonl/?token=hunter2", *ENGINE[:-3])
    assert missing.returncode == 2
    assert "hunter2" not in done.stderr + missing.stderr
    for path in find_copies().rglob("*"):
        assert "hunter2" not in str(path)
        assert not path.is_file() or b"hunter2" not in path.read_bytes()


def test_a_damaged_copy_of_a_download_is_fetched_again(synthia: Command, web: Web) -> None:
    assert synthia("validate", f"{web.url}/q.jsonl", *ENGINE[:-3]).returncode == 0
    (kept,) = find_copies().glob("*/q.jsonl")
    kept.write_bytes(TEXT.replace(b"What is 7?", b"What is 8?"))
    done = synthia("validate", f"{web.url}/q.jsonl", *ENGINE[:-3])
    assert done.returncode == 0
    assert "is damaged (q.jsonl has changed): rebuilding it" in done.stderr
    assert kept.read_bytes() == TEXT


def test_a_download_that_does_not_say_its_length_is_compared_with_a_second_one(
    synthia: Command, web: Web
) -> None:
    web.has_lengths = web.has_ranges = False
    done = synthia("validate", f"{web.url}/q.jsonl", *ENGINE[:-3])
    assert (done.returncode, "2,000 rows, no faults" in done.stdout) == (0, True), done.stderr
    assert "the server does not say how long it is; two downloads are equal" in done.stderr
    (kept,) = find_copies().glob("*/q.jsonl")
    assert kept.read_bytes() == TEXT
    assert sorted(path.name for path in kept.parent.iterdir()) == ["digests.json", "q.jsonl"]


def test_a_download_without_a_length_that_is_cut_at_a_line_end_is_refused(synthia: Command, web: Web) -> None:
    web.has_lengths = web.has_ranges = False
    half = TEXT.index(b"\n", len(TEXT) // 2) + 1
    web.faults = [("", 0), ("break", half)]
    done = synthia("validate", f"{web.url}/q.jsonl", *ENGINE[:-3])
    assert done.returncode == 2
    assert f"two downloads differ ({half:,} and {len(TEXT):,} bytes)" in done.stderr
    assert "--input-digest" in done.stderr
    assert not list(find_copies().glob("*/q.jsonl"))


def test_an_input_digest_spares_the_second_download_and_refuses_a_cut_one(synthia: Command, web: Web) -> None:
    web.has_lengths = web.has_ranges = False
    command = ("validate", f"{web.url}/q.jsonl", "--input-digest", blake3(TEXT).hexdigest(), *ENGINE[:-3])
    web.faults = [("", 0), ("break", TEXT.index(b"\n") + 1)]
    cut = synthia(*command)
    assert cut.returncode == 2
    assert f"expected an input with the digest {blake3(TEXT).hexdigest()}, got " in cut.stderr
    asked = len(web.asked)
    assert synthia(*command).returncode == 0
    assert len(web.asked) == asked + 2, "one look and one download"


@pytest.mark.parametrize("has_ranges", [True, False])
def test_a_get_with_a_length_is_held_to_it_even_if_the_look_had_none(
    synthia: Command, web: Web, has_ranges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from synthia_batch.inputs.remote.http import WebStore
    from synthia_batch.inputs.remote.transport import Broken

    store = WebStore()
    web.has_ranges = has_ranges
    found = replace(store.look(f"{web.url}/q.jsonl"), size=None)
    web.faults = [("break", 100)]
    with pytest.raises(Broken, match=f"ends {len(TEXT) - 100:,} bytes early"):
        list(store.read(found, 0))


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with serve_s3(tmp_path_factory.mktemp("s3")) as running:
        for name, content in (
            ("in/a.jsonl", TEXT[: TEXT.index(b"\n") + 1]),
            ("in/more/b.jsonl.gz", gzip.compress(TEXT.replace(b"What", b"Who"))),
            ("in/more/notes.txt", b"no rows"),
        ):
            running.ask("PUT", f"{BUCKET}/{name}", content)
        yield running


@pytest.mark.parametrize("path", ["in", "in/", "in/*", "in/?.jsonl", "in/**"])
def test_a_bucket_is_read_by_prefix_and_by_pattern(synthia: Command, s3: S3, path: str) -> None:
    done = synthia("plan", f"s3://{BUCKET}/{path}", "--json", *ENGINE[:-3], **s3.environment)
    whole, first = {"a.jsonl": 1, "more/b.jsonl.gz": 2000}, {"a.jsonl": 1}
    rows = {"in/*": first, "in/?.jsonl": first, "in/**": None}.get(path, whole)
    if rows is None:
        assert done.returncode == 2
        assert "notes.txt: unknown format" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    files = json.loads(done.stdout)["files"]
    assert {file["name"].removeprefix(f"s3://{BUCKET}/in/"): file["rows"] for file in files} == rows


def test_a_bucket_that_fails_is_asked_again(synthia: Command, s3: S3, tmp_path: Path) -> None:
    s3.proxy.reset()
    s3.proxy.faults = [
        Fault(lambda seen: seen.method == "HEAD", status=503),
        Fault(lambda seen: seen.method == "GET", before="reset"),
        Fault(lambda seen: seen.method == "GET", after="500"),
    ]
    url = f"s3://{BUCKET}/in/more/b.jsonl.gz"
    done = synthia("run", url, "-o", "out", *ENGINE, **s3.environment)
    assert done.returncode == 0, done.stderr
    assert count_rows(tmp_path / "out") == 2000
    assert "already complete" in synthia("run", url, "-o", "out", *ENGINE, **s3.environment).stderr


def test_what_a_bucket_does_not_have_is_said(synthia: Command, s3: S3) -> None:
    done = synthia("validate", f"s3://{BUCKET}/nothing.jsonl", *ENGINE[:-3], **s3.environment)
    assert done.returncode == 2
    assert "no such file, and no files of rows below it" in done.stderr


def test_a_bucket_of_google_is_read_on_a_server_in_the_shape_of_its_api(
    synthia: Command, tmp_path: Path
) -> None:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        for name, content in (("in/a.jsonl", TEXT), ("in/b.jsonl.gz", gzip.compress(TEXT))):
            server.bucket.objects[name] = Stored(1, content, {})
        done = synthia("run", "gs://bucket/in", "-o", "out", *ENGINE, **server.environment)
        server.shutdown()
    assert done.returncode == 0, done.stderr
    assert count_rows(tmp_path / "out") == 4000


def test_what_reads_a_bucket_is_named_where_it_is_not_installed(synthia: Command, tmp_path: Path) -> None:
    (tmp_path / "obstore.py").write_text("raise ImportError('not here')\n")
    for scheme, extra in (("s3", "s3"), ("gs", "gcs")):
        done = synthia("validate", f"{scheme}://b/a.jsonl", *ENGINE[:-3])
        assert done.returncode == 2
        assert f"needs the extra '{extra}': pip install 'synthia-batch[{extra}]'" in done.stderr


HUB_FILES = {
    "README.md": b"# Rows\n",
    "data/train-0.jsonl": b'{"question": "Why?"}\n',
    "data/train-1.jsonl.gz": gzip.compress(b'{"question": "How?"}\n{"question": "Who?"}\n'),
    "test.jsonl": b'{"question": "When?"}\n',
}
COMMIT = "a" * 40


@contextmanager
def serve_hub() -> Iterator[Web]:
    """The Hub as far as a dataset is read from it."""
    listing = {
        "id": "me/rows",
        "sha": COMMIT,
        "private": False,
        "siblings": [{"rfilename": name} for name in HUB_FILES],
    }
    tree = [
        {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        for name, content in HUB_FILES.items()
    ]
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            seen.append(path)
            if path in (
                "/api/datasets/me/rows",
                f"/api/datasets/me/rows/revision/{COMMIT}",
                "/api/datasets/me/rows/revision/main",
            ):
                self._answer(json.dumps(listing).encode())
            elif path.startswith("/api/datasets/me/rows/tree/"):
                self._answer(json.dumps(tree).encode())
            elif path.startswith(f"/datasets/me/rows/resolve/{COMMIT}/"):
                self._answer(HUB_FILES[path.removeprefix(f"/datasets/me/rows/resolve/{COMMIT}/")])
            elif path.startswith("/api/datasets/me/rows/revision/"):
                self._answer(b"{}", 404, **{"X-Error-Code": "RevisionNotFound"})
            else:
                self._answer(b"{}", 404, **{"X-Error-Code": "RepoNotFound"})

        do_HEAD = do_GET

        def _answer(self, content: bytes, status: int = 200, **headers: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield Web(url=f"http://127.0.0.1:{server.server_address[1]}", asked=[("GET", path) for path in seen])
    finally:
        server.shutdown()
        server.server_close()


def test_a_dataset_on_the_hub_is_read_by_directory_pattern_and_offline(
    synthia: Command, tmp_path: Path
) -> None:
    with serve_hub() as hub:
        where = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
        done = synthia("run", "hf://datasets/me/rows/data", "-o", "out", *ENGINE, **where)
        assert done.returncode == 0, done.stderr
        rows = pq.read_table(tmp_path / "out" / "data").to_pylist()
        assert [row["messages"][-2]["content"] for row in rows] == ["Why?", "How?", "Who?"]
        plan = synthia("plan", "hf://datasets/me/rows@main/*/*.gz", "--json", *ENGINE[:-3], **where)
        assert plan.returncode == 0, plan.stderr
        assert json.loads(plan.stdout)["files"] == [
            {"name": "hf://datasets/me/rows@main/data/train-1.jsonl.gz", "rows": 2}
        ]
        for address, message in (
            ("hf://datasets/me/rows@no/data", "it has no revision 'no'"),
            ("hf://datasets/me/none", "there is no such dataset, or it is private"),
            ("hf://datasets/me/rows/no.jsonl", "no such file of rows; the dataset has: README.md"),
            ("hf://models/me/rows", "expected the form hf://datasets/OWNER/NAME[@REVISION]/PATH"),
        ):
            refused = synthia("validate", address, *ENGINE[:-3], **where)
            assert refused.returncode == 2, refused
            assert message in refused.stderr
    offline = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    again = synthia("run", "hf://datasets/me/rows/data", "-o", "out", *ENGINE, **offline)
    assert "already complete" in again.stderr, again.stderr
    assert "the Hub cannot be reached; using the files in its cache" in again.stderr
    lacking = synthia("validate", "hf://datasets/me/other", *ENGINE[:-3], **offline)
    assert (lacking.returncode, "it is not in its cache" in lacking.stderr) == (2, True), lacking.stderr
    (blob,) = [path for path in (tmp_path / "hub").rglob("blobs/*") if b"Why?" in path.read_bytes()]
    blob.write_bytes(b'{"question": "Wye?"}\n')
    damaged = synthia("run", "hf://datasets/me/rows/data", *ENGINE, **offline)
    assert damaged.returncode == 2
    assert f"train-0.jsonl is damaged in the Hub's cache; remove {blob}, and run again" in damaged.stderr


def test_what_an_address_on_the_hub_takes() -> None:
    files = ["README.md", "a.json", "data/b.jsonl", "data/.x/c.jsonl", "data/d/e.csv.gz"]
    assert select_rows(files, "") == ["data/b.jsonl", "data/d/e.csv.gz"]
    assert select_rows(files, "data/d") == ["data/d/e.csv.gz"]
    assert select_rows(files, "a.json") == ["a.json"]
    assert select_rows(files, "**/*.jsonl") == ["data/.x/c.jsonl", "data/b.jsonl"]
    assert select_rows(files, "data/*") == ["data/b.jsonl"]


def test_a_datasets_directory_is_read_and_keeps_its_types(synthia: Command, tmp_path: Path) -> None:
    import datasets

    rows = [{"question": f"What is {n}?", "n": n, "tags": ["a", "b"]} for n in range(7)]
    dataset = datasets.Dataset.from_list(rows)
    dataset.save_to_disk(tmp_path / "saved", num_shards=2)
    datasets.DatasetDict(train=dataset, test=dataset).save_to_disk(tmp_path / "splits")
    done = synthia("run", "saved", "--keep-columns", "n,tags", "-o", "out", *ENGINE)
    assert done.returncode == 0, done.stderr
    made = pq.read_table(tmp_path / "out" / "data")
    assert made["n"].to_pylist() == list(range(7))
    assert made["tags"].to_pylist()[0] == ["a", "b"]
    assert synthia("verify", "out", "-q").returncode == 0
    split = synthia("validate", "splits/test", *ENGINE[:-3])
    assert split.stdout.startswith("splits/test: 7 rows, no faults"), split.stderr
    several = synthia("run", "splits", *ENGINE)
    assert several.returncode == 2
    assert (
        "splits: expected one dataset, got the splits test, train; name one of them, such as splits/test"
        in several.stderr
    )
    (arrow, *_) = sorted((tmp_path / "saved").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:-300])
    damaged = synthia("run", "saved", *ENGINE)
    assert damaged.returncode == 2
    assert f"saved: {arrow.name}: not a readable Arrow file, or damaged" in damaged.stderr
