"""Pushing to the Hub: what is not there yet is uploaded, then one commit makes all of it visible at once.

One commit, and not `upload_large_folder`, whose many commits would show half a dataset for as long as
the push takes. A push that is killed goes on where it was: content is uploaded under its own digest
before the commit, and the Hub asks only for what it has not. The token is the Hub's own (HF_TOKEN, or
`hf auth login`): it is never taken as a flag, kept or printed.
"""

import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from synthia_batch.core.backoff import Backoff, BackoffPolicy, parse_retry_after
from synthia_batch.errors import StoreUnreachable, UsageError
from synthia_batch.results.export.hub_dataset import PushedFile

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PATIENCE_SECONDS = 600.0
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
MAIN = "main"
_OURS = re.compile(r"(data/train|failed/failed)-\d{5,}-of-\d{5,}\.parquet")
_NOT_MENDED_BY_WAITING = range(400, 500)
_MENDED_BY_WAITING = (408, 409, 412, 425, 429)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where to push to. `private` makes a new repository private, and is required of one that is there."""

    repository: str
    revision: str | None
    private: bool
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """What a push came to: the address of the dataset, and how many files were new, removed, or there."""

    url: str
    added: int
    removed: int
    unchanged: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Difference:
    """What is to be done to the repository at the commit `parent`, None where it has none."""

    parent: str | None
    added: tuple[PushedFile, ...]
    removed: tuple[str, ...]


def push_files(
    files: Sequence[PushedFile],
    target: Target,
    patience_seconds: float = PATIENCE_SECONDS,
) -> Pushed:
    """Make the dataset on the Hub exactly these files; others that are no parts of a run stay.

    Rate limits, errors of the server and broken connections are waited for and tried again.

    Raises:
        UsageError: The Hub refuses: no token, no right, another repository's privacy, a wrong name.
        StoreUnreachable: It did not answer for as long as was waited.
    """
    from huggingface_hub import HfApi

    pusher = _Pusher(HfApi(), files, target)
    policy = BackoffPolicy(
        first_seconds=FIRST_PAUSE_SECONDS,
        longest_seconds=LONGEST_PAUSE_SECONDS,
        longest_asked_seconds=PATIENCE_SECONDS,
        max_seconds=patience_seconds,
    )
    backoff = Backoff(policy)
    while True:
        try:
            return pusher.push()
        except UsageError:
            raise
        # Which errors the network has depends on the HTTP library under the Hub's, and its own wrap others.
        except Exception as exc:
            refusal = _explain_refusal(target, exc)
            if refusal is not None:
                raise UsageError(refusal) from exc
            pause = backoff.next_pause(_read_retry_after(exc))
            if pause is None:
                raise StoreUnreachable(
                    f"{target.repository}: the Hub did not take it: {_shorten(exc)}\n"
                    "  what was uploaded is not sent again: run the same command again"
                ) from exc
            _log.info(f"{target.repository}: {_shorten(exc)}; trying again in {pause:.0f} s")
            time.sleep(pause)


class _Pusher:
    """One push, from the beginning each time it is tried: what is done is seen, and not done again."""

    def __init__(self, api: "HfApi", files: Sequence[PushedFile], target: Target) -> None:
        self._api = api
        self._files = files
        self._target = target

    def push(self) -> Pushed:
        url = self._require_repository()
        difference = self._compare()
        if difference.added or difference.removed:
            self._commit(difference)
        return Pushed(
            url=url,
            added=len(difference.added),
            removed=len(difference.removed),
            unchanged=len(self._files) - len(difference.added),
        )

    def _require_repository(self) -> str:
        name, revision = self._target.repository, self._target.revision
        private = True if self._target.private else None
        made = self._api.create_repo(name, repo_type="dataset", private=private, exist_ok=True)
        if self._target.private and not self._api.dataset_info(name).private:
            raise UsageError(
                f"{name} is there, and public; nothing was sent\n"
                "  make it private on its settings page, push without --private, or name another"
            )
        if revision not in (None, MAIN):
            self._api.create_branch(name, repo_type="dataset", branch=str(revision), exist_ok=True)
        return str(made)

    def _compare(self) -> _Difference:
        from huggingface_hub.hf_api import RepoFile

        name, revision = self._target.repository, self._target.revision
        parent = self._api.dataset_info(name, revision=revision).sha
        # Of that commit, and not of what may have come since: the Hub then refuses a commit beside it.
        tree = self._api.list_repo_tree(
            name, repo_type="dataset", revision=parent or revision, recursive=True
        )
        there = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
        return _Difference(
            parent=parent,
            added=tuple(file for file in self._files if not _is_there(file, there.get(file.name))),
            removed=tuple(sorted(path for path in there.keys() - {file.name for file in self._files}
                                 if _OURS.fullmatch(path))),
        )  # fmt: skip

    def _commit(self, difference: _Difference) -> None:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        size = sum(file.bytes for file in difference.added)
        _log.info(f"{self._target.repository}: sending {len(difference.added)} files, {size / 1e6:.1f} MB")
        if difference.removed:
            _log.info(f"{len(difference.removed)} parts of an earlier dataset there are replaced")
        operations: list[Any] = [
            *(CommitOperationAdd(file.name, str(file.path)) for file in difference.added),
            *(CommitOperationDelete(name) for name in difference.removed),
        ]
        self._api.create_commit(
            self._target.repository,
            operations,
            repo_type="dataset",
            revision=self._target.revision,
            commit_message=self._target.message,
            parent_commit=difference.parent,
        )


def _is_there(file: PushedFile, entry: Any) -> bool:
    if entry is None or entry.size != file.bytes:
        return False
    return bool(entry.lfs.sha256 == file.sha256 if entry.lfs else entry.blob_id == file.blob_id)


def _find_status(error: BaseException | None) -> Any:
    """Return the Hub's answer that `error`, or what it was raised from, carries; None where there is none."""
    for _ in range(10):
        if error is None:
            return None
        response = getattr(error, "response", None)
        if response is not None:
            return response
        error = error.__cause__ or error.__context__
    return None


def _explain_refusal(target: Target, error: Exception) -> str | None:
    """Return why the Hub will not take it, also later; None where waiting may help."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    if isinstance(error, HFValidationError):
        return f"{target.repository} is no name of a repository: {error}"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, and a push needs the Hub: unset it"
    response = _find_status(error)
    if response is None or response.status_code in _MENDED_BY_WAITING:
        return None
    if response.status_code not in _NOT_MENDED_BY_WAITING:
        return None
    if get_token() is None:
        return (
            f"{target.repository}: the Hub wants to know who pushes: make a token with write access at "
            "https://huggingface.co/settings/tokens, and set HF_TOKEN or use `hf auth login`"
        )
    return (
        f"{target.repository}: the Hub refuses ({response.status_code}): {_shorten(error)}\n"
        "  see to the name, and to the rights of the token that is set here (HF_TOKEN, or `hf auth login`)"
    )


def _read_retry_after(error: Exception) -> float:
    response = _find_status(error)
    return 0.0 if response is None else parse_retry_after(str(response.headers.get("retry-after", "")))


def _shorten(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
