"""Datasets of the Hugging Face Hub: files of rows, fetched once into the Hub's own cache."""

import glob
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from synthia_batch.core.telemetry import keep_private
from synthia_batch.errors import UsageError
from synthia_batch.inputs.fetch.file_types import LocatedFile, is_row_file, list_row_endings
from synthia_batch.inputs.remote.fetch import match_names

_log = logging.getLogger(__name__)

_ADDRESS = re.compile(
    r"hf://datasets/(?P<name>[^/@]+/[^/@]+)(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(?P<path>.*))?"
)
FORM = "hf://datasets/OWNER/NAME[@REVISION]/PATH"


@dataclass(frozen=True, slots=True, kw_only=True)
class HubAddress:
    """What an address names. `path` is a file, a directory or a pattern, empty for all of the dataset."""

    said: str
    name: str
    revision: str | None
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listed:
    """The files of a dataset. `commit` is None where they are those of the Hub's cache."""

    files: tuple[str, ...]
    commit: str | None


def fetch_dataset(said: str, *, makes: bool = True) -> list[LocatedFile]:
    """Return the files of rows that an address on the Hub names, sorted by name.

    Without `makes`, those alone that are in the Hub's cache.

    Raises:
        UsageError: The address is none, or its files are not to be had.
    """
    address = _parse(said)
    keep_private()  # Before the Hub's library is there: it reads its switches once.
    listed = _list_files(address, asks_hub=makes)
    wanted = select_rows(listed.files, address.path)
    if not wanted:
        raise UsageError(f"{said}: there is no such file of rows; there are: {_shorten(listed.files)}")
    folder = _fetch(address, listed, wanted)
    prefix = said[: len(said) - len(address.path)].rstrip("/") if address.path else said.rstrip("/")
    return [LocatedFile(path=folder / name, shown=f"{prefix}/{name}") for name in wanted]


def select_rows(files: Sequence[str], path: str) -> list[str]:
    """Return those of `files` that `path` names: one, those of a directory, or those that fit a pattern."""
    path = path.strip("/")
    if path in files:
        return [path]
    matched = match_names(files, path)
    if matched:
        return matched
    below = [name for name in files if not path or name.startswith(f"{path}/")]
    return sorted(name for name in below if is_row_file(name))


def _parse(said: str) -> HubAddress:
    found = _ADDRESS.fullmatch(said)
    if found is None:
        raise UsageError(f"{said}: write it as {FORM}")
    revision = found["revision"]
    return HubAddress(
        said=said,
        name=found["name"],
        revision=unquote(revision) if revision else None,
        path=found["path"] or "",
    )


def _list_files(address: HubAddress, *, asks_hub: bool) -> _Listed:
    """Return what the Hub lists, or where it does not answer, what its cache holds."""
    from huggingface_hub import HfApi

    reason: Exception | None = None
    if asks_hub:
        try:
            info = HfApi().dataset_info(address.name, revision=address.revision)
            names = tuple(file.rfilename for file in info.siblings or ())
            return _Listed(files=names, commit=info.sha)
        except Exception as exc:
            # Which errors the network has depends on the HTTP library under the Hub's.
            reason = exc
    try:
        folder = _download(address, address.revision, _list_patterns(address.path), is_local=True)
    except Exception as exc:
        raise UsageError(_explain(address, reason or exc)) from exc
    if reason is not None:
        _log.info(f"{address.said}: the Hub is not reached; read are the files that its cache has")
    return _Listed(files=tuple(_list_below(folder)), commit=None)


def _list_below(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix()


def _fetch(address: HubAddress, listed: _Listed, wanted: Sequence[str]) -> Path:
    patterns = [_escape(name) for name in wanted]
    if listed.commit is None:
        return _download(address, address.revision, patterns, is_local=True)
    try:
        folder = _download(address, listed.commit, patterns, is_local=True)
        for name in wanted:
            (folder / name).stat()
        return folder
    except Exception:  # Not all of it is in the cache.
        _log.info(f"{address.said}: fetching {len(wanted)} files at commit {listed.commit[:12]}")
    try:
        # By its name, not by the commit: so the cache knows it by that, too, without a network.
        return _download(address, address.revision, patterns)
    except Exception as exc:
        raise UsageError(_explain(address, exc)) from exc


def _download(
    address: HubAddress, revision: str | None, patterns: Sequence[str], *, is_local: bool = False
) -> Path:
    """Return the snapshot's folder with the files in it that fit, or `is_local`, what the cache has of them.

    Raises:
        Exception: They are not to be had.
    """
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            address.name,
            repo_type="dataset",
            revision=revision,
            allow_patterns=list(patterns),
            local_files_only=is_local,
        )
    )


def _list_patterns(path: str) -> list[str]:
    """Return patterns that the files of rows fit which `path` may name: only those are asked of the cache."""
    path = path.strip("/")
    if glob.has_magic(path):
        return [path]
    folder = f"{path}/" if path else ""
    return [*([path] if path else []), *(f"{folder}*{ending}" for ending in list_row_endings())]


def _escape(name: str) -> str:
    """Return a pattern that just this name fits."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _explain(address: HubAddress, error: Exception) -> str:
    """Return why the Hub did not give the dataset, and what to do about it."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/datasets/{address.name}"
    token = "set HF_TOKEN, or `hf auth login`"
    if isinstance(error, errors.GatedRepoError):
        why = f"it is gated: ask for access at {page}, and {token}"
    elif isinstance(error, errors.RevisionNotFoundError):
        why = f"it has no revision {address.revision!r}; see {page}/tree/main"
    elif isinstance(error, errors.RepositoryNotFoundError):
        why = f"there is no such dataset, or it is private: check the name, and {token}"
    elif isinstance(error, errors.HFValidationError):
        why = f"that is no name of a dataset; write it as {FORM}"
    elif isinstance(error, errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError):
        why = "the Hub is not reached, and its cache has not got it; check the network, or HF_HUB_OFFLINE"
    else:
        first = str(error).strip().partition("\n")[0]
        why = f"{first[:300] or repr(error)}; check the network"
    return f"{address.said}: the Hub did not give it: {why}"


def _shorten(names: Sequence[str]) -> str:
    shown = ", ".join(sorted(names)[:10])
    return f"{shown or 'none'}{f' and {len(names) - 10} more' if len(names) > 10 else ''}"
