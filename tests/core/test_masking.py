"""What an address and a message show of their secrets: nothing."""

import pytest

from synthia_batch.core.masking import (
    change_secret_fields,
    is_masked,
    is_secret_name,
    mask_address,
    mask_known,
    mask_text,
    remember_address,
    remember_secret,
    strip_address,
)
from synthia_batch.errors import SampleRefused, UsageError
from synthia_batch.job.loading.command_line import mask_arguments

ADDRESSES = {
    "https://u:p@h/x?a=b": ("https://...@h/x?...", "https://h/x"),
    "https://u:p/q@h/x?sig=1#f": ("https://...@h/x?...", "https://h/x"),
    "https://u:p?q@h:80/x": ("https://...@h:80/x", "https://h:80/x"),
    "s3://bucket/key": ("s3://bucket/key", "s3://bucket/key"),
    "http://h:80/a@b": ("http://h:80/a@b", "http://h:80/a@b"),
    "http://[::1]:80/a": ("http://[::1]:80/a", "http://[::1]:80/a"),
    "json://u:p@a@h/": ("json://...@h/", "json://h/"),
    "http://h/x?next=http://a:b@c/": ("http://h/x?...", "http://h/x"),
    "no address": ("no address", "no address"),
}


@pytest.mark.parametrize("url", ADDRESSES)
def test_an_address_shows_no_secret(url: str) -> None:
    assert (mask_address(url), strip_address(url)) == ADDRESSES[url]
    assert is_masked(mask_address(url)) == ("..." in mask_address(url))


def test_names_of_secrets() -> None:
    secret = [
        "api_key",
        "apiKey",
        "X-Api-Key",
        "Authorization",
        "token",
        "hf_token",
        "client_secret",
        "password",
    ]
    other = ["max_tokens", "eos_token", "prompt_cache_key", "session_id", "keys", "secretary"]
    assert [name for name in (*secret, *other) if is_secret_name(name)] == secret


def test_a_secret_is_hidden_wherever_it_turns_up_again() -> None:
    remember_secret("abcdef-planted")
    remember_secret("abc")
    remember_address("https://me:pass%40word@h/x?X-Amz-Signature=0123456789abcdef&page=2")
    assert mask_known("abcdef-planted, abc") == "..., abc", "what is too short is an ordinary word"
    assert mask_known("pass@word pass%40word 0123456789abcdef page=2") == "... ... ... page=2"
    assert mask_text("see https://a:b@h/x?y=z abcdef-planted") == "see https://...@h/x?... ..."


def test_errors_hide_secrets_and_failures_keep_the_addresses_of_rows() -> None:
    remember_secret("ghijkl-planted")
    assert str(UsageError("https://a:b@h/x ghijkl-planted")) == "https://...@h/x ..."
    refused = SampleRefused("code", "row https://h/x?y=z ghijkl-planted")
    assert str(refused) == "row https://h/x?y=z ..."


def test_fields_of_secrets_are_changed_at_any_depth() -> None:
    body = {"api_key": "a", "n": 1, "more": [{"token": "b", "text": "c"}], "none": None}
    assert change_secret_fields(body, str.upper) == {
        "api_key": "A", "n": 1, "more": [{"token": "B", "text": "c"}], "none": None,
    }  # fmt: skip
    assert change_secret_fields(body, lambda text: None) == {"n": 1, "more": [{"text": "c"}], "none": None}


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        (["--notify", "json://u:p@h"], ["--notify", "json://..."]),
        (["--set", "engine.api_key=s"], ["--set", "engine.api_key=..."]),
        (["--set", "engine.api_key=${KEY}"], ["--set", "engine.api_key=${KEY}"]),
        (["--set=engine={hf_token: s, a: 1}"], ["--set=engine=..."]),
        (["--set", "engine.extra_body={a: {api_key: s}}"], ["--set", "engine.extra_body=..."]),
        (["--set", "engine.extra_body={effort: low}"], ["--set", "engine.extra_body={effort: low}"]),
        (["--set", "engine.extra_body.token=s"], ["--set", "engine.extra_body.token=..."]),
        (["https://u:p@h/q?sig=1"], ["https://...@h/q?..."]),
        (["--base-url=http://u:p@h"], ["--base-url=http://...@h"]),
        (["-s", "see https://h/x?y=z for more"], ["-s", "see https://h/x?y=z for more"]),
    ],
)
def test_a_command_line_shows_no_secret(typed: list[str], shown: list[str]) -> None:
    assert mask_arguments(typed) == shown
