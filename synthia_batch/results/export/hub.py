"""Pushes a dataset to the Hub: uploads what is missing, then publishes everything in one commit.

`upload_large_folder` makes many commits, which would expose a partial dataset during the push. A killed
push resumes: content is uploaded by digest before the commit, and the Hub requests only what it lacks.
The token is the Hub's own (HF_TOKEN, or `hf auth login`): never a flag, never stored or printed.
"""

import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from synthia_batch.core.backoff import Backoff, BackoffPolicy, parse_retry_after
from synthia_batch.core.errors import StoreUnreachable, UsageError
from synthia_batch.core.formatting import format_count
from synthia_batch.results.export.hub_dataset import PushedFile

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from huggingface_hub import HfApi

RETRY_SECONDS = 600.0
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
MAIN = "main"
_PART_NAME = re.compile(r"(data/train|failed/failed)-\d{5,}-of-\d{5,}\.parquet")
_RETRYABLE = (408, 409, 412, 425, 429)


@dataclass(frozen=True, slots=True, kw_only=True)
class PushTarget:
    """Where to push. `private` creates a private repository and requires an existing one to be private."""

    repository: str
    revision: str | None
    private: bool
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PushResult:
    """Result of a push: the URL of the dataset, and the numbers of files."""

    url: str
    added: int
    removed: int
    unchanged: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Difference:
    """Changes to the repository relative to the commit `parent`, None if it has none."""

    parent: str | None
    added: tuple[PushedFile, ...]
    removed: tuple[str, ...]


def push_files(files: Sequence[PushedFile], target: PushTarget) -> PushResult:
    """Replace the run files on the Hub with `files`; files that are not parts of a run stay.

    Rate limits, server errors and broken connections are retried for RETRY_SECONDS.

    Raises:
        UsageError: The Hub refuses: missing token or permission, a public repository, an invalid name.
        StoreUnreachable: The Hub did not accept the push in time.
    """
    from huggingface_hub import HfApi

    pusher = _Pusher(HfApi(), files, target)
    policy = BackoffPolicy(
        first_seconds=FIRST_PAUSE_SECONDS,
        longest_seconds=LONGEST_PAUSE_SECONDS,
        longest_asked_seconds=RETRY_SECONDS,
        max_seconds=RETRY_SECONDS,
    )
    backoff = Backoff(policy)
    while True:
        try:
            return pusher.push()
        except UsageError:
            raise
        # Network errors depend on the HTTP library below huggingface_hub, whose own errors wrap others.
        except Exception as exc:
            refusal = _explain_refusal(target, exc)
            if refusal is not None:
                raise UsageError(refusal) from exc
            pause = backoff.next_pause(_read_retry_after(exc))
            if pause is None:
                raise StoreUnreachable(
                    f"{target.repository}: the Hub did not accept the push: {_shorten(exc)}\n"
                    "  run the same command again: it does not repeat finished uploads"
                ) from exc
            _log.info(f"{target.repository}: {_shorten(exc)}; retrying in {pause:.0f} s")
            time.sleep(pause)


@dataclass(frozen=True, slots=True)
class _Pusher:
    """One push. Each try starts over and skips what is already done."""

    api: "HfApi"
    files: Sequence[PushedFile]
    target: PushTarget

    def push(self) -> PushResult:
        url = self._require_repository()
        difference = self._compare()
        if difference.added or difference.removed:
            self._commit(difference)
        return PushResult(
            url=url,
            added=len(difference.added),
            removed=len(difference.removed),
            unchanged=len(self.files) - len(difference.added),
        )

    def _require_repository(self) -> str:
        name, revision = self.target.repository, self.target.revision
        private = True if self.target.private else None
        url = self.api.create_repo(name, repo_type="dataset", private=private, exist_ok=True)
        if self.target.private and not self.api.dataset_info(name).private:
            raise UsageError(
                f"{name} exists and is public; nothing was sent\n"
                "  make it private in its settings, push without --private, or use another name"
            )
        if revision not in (None, MAIN):
            self.api.create_branch(name, repo_type="dataset", branch=str(revision), exist_ok=True)
        return str(url)

    def _compare(self) -> _Difference:
        from huggingface_hub.hf_api import RepoFile

        name, revision = self.target.repository, self.target.revision
        parent = self.api.dataset_info(name, revision=revision).sha
        # The tree of that commit: if another commit lands in between, the Hub refuses ours.
        tree = self.api.list_repo_tree(name, repo_type="dataset", revision=parent or revision, recursive=True)
        existing = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
        return _Difference(
            parent=parent,
            added=tuple(file for file in self.files if not _is_unchanged(file, existing.get(file.name))),
            removed=tuple(sorted(path for path in existing.keys() - {file.name for file in self.files}
                                 if _PART_NAME.fullmatch(path))),
        )  # fmt: skip

    def _commit(self, difference: _Difference) -> None:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        size = sum(file.bytes for file in difference.added)
        files = format_count(len(difference.added), "file")
        _log.info(f"{self.target.repository}: sending {files}, {size / 1e6:.1f} MB")
        if difference.removed:
            _log.info(f"{len(difference.removed)} parts of an earlier dataset will be replaced")
        operations: list[Any] = [
            *(CommitOperationAdd(file.name, str(file.path)) for file in difference.added),
            *(CommitOperationDelete(name) for name in difference.removed),
        ]
        self.api.create_commit(
            self.target.repository,
            operations,
            repo_type="dataset",
            revision=self.target.revision,
            commit_message=self.target.message,
            parent_commit=difference.parent,
        )


def _is_unchanged(file: PushedFile, entry: Any) -> bool:
    if entry is None or entry.size != file.bytes:
        return False
    return bool(entry.lfs.sha256 == file.sha256 if entry.lfs else entry.blob_id == file.blob_id)


def _find_response(error: BaseException | None) -> Any:
    """Return the Hub's response carried by `error` or its causes, None if there is none."""
    for _ in range(10):
        if error is None:
            return None
        response = getattr(error, "response", None)
        if response is not None:
            return response
        error = error.__cause__ or error.__context__
    return None


def _explain_refusal(target: PushTarget, error: Exception) -> str | None:
    """Return why the Hub will never accept the push; None if a retry may help."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    if isinstance(error, HFValidationError):
        return f"{target.repository} is not a valid repository name: {error}"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, but a push needs the Hub; unset it"
    response = _find_response(error)
    if response is None or response.status_code in _RETRYABLE:
        return None
    if not 400 <= response.status_code < 500:
        return None
    if get_token() is None:
        return (
            f"{target.repository}: the Hub requires a token: create one with write access at "
            "https://huggingface.co/settings/tokens, then set HF_TOKEN or use `hf auth login`"
        )
    return (
        f"{target.repository}: the Hub refuses ({response.status_code}): {_shorten(error)}\n"
        "  check the name and the permissions of the token in use (HF_TOKEN, or `hf auth login`)"
    )


def _read_retry_after(error: Exception) -> float:
    response = _find_response(error)
    return 0.0 if response is None else parse_retry_after(str(response.headers.get("retry-after", "")))


def _shorten(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
