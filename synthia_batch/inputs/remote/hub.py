"""Datasets of the Hugging Face Hub, downloaded once into the Hub's own cache."""

import glob
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from synthia_batch.core.digest import open_digest_cache
from synthia_batch.core.errors import InputRefused, UsageError
from synthia_batch.core.formatting import format_count, join_first
from synthia_batch.core.hub_blob import find_blob_damage
from synthia_batch.core.telemetry import keep_private
from synthia_batch.inputs.fetch.file_types import LocatedFile, choose_row_files, list_row_endings
from synthia_batch.inputs.remote.fetch import match_names

_log = logging.getLogger(__name__)

_ADDRESS = re.compile(
    r"hf://datasets/(?P<name>[^/@]+/[^/@]+)(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(?P<path>.*))?"
)
FORM = "hf://datasets/OWNER/NAME[@REVISION]/PATH"


@dataclass(frozen=True, slots=True, kw_only=True)
class HubAddress:
    """The parts of an address. `path` is a file, a directory or a pattern, empty for the whole dataset."""

    url: str
    name: str
    revision: str | None
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listed:
    """The files of a dataset. `commit` is None if they are from the Hub's cache."""

    files: tuple[str, ...]
    commit: str | None


def fetch_dataset(url: str, *, makes: bool = True) -> list[LocatedFile]:
    """Return the files of rows at an address on the Hub, sorted by name; only cached ones without `makes`.

    Raises:
        UsageError: The address is invalid, or its files cannot be downloaded.
        InputRefused: A file in the Hub's cache is damaged.
    """
    address = _parse(url)
    keep_private()  # The Hub's library reads these settings once, on import.
    listed = _list_files(address, asks_hub=makes)
    wanted = select_rows(listed.files, address.path)
    if not wanted:
        names = join_first(sorted(listed.files), 10) or "none"
        raise UsageError(f"{url}: no such file of rows; the dataset has: {names}")
    folder = _fetch(address, listed, wanted)
    cache = open_digest_cache()
    damages = [find_blob_damage(folder / name, cache) for name in wanted]
    if any(damages):
        raise InputRefused([f"{url}: {damage}" for damage in damages if damage])
    prefix = url.removesuffix(address.path).rstrip("/")
    return [LocatedFile(path=folder / name, shown=f"{prefix}/{name}") for name in wanted]


def select_rows(files: Sequence[str], path: str) -> list[str]:
    """Return the `files` that `path` names: one, those of a directory, or those that match a pattern."""
    path = path.strip("/")
    if path in files:
        return [path]
    matched = match_names(files, path)
    if matched:
        return matched
    below = [name for name in files if not path or name.startswith(f"{path}/")]
    found = choose_row_files(below)
    if found.rows and found.ignored:
        _log.info(f"{path or 'dataset'}: {found.describe_ignored()}")
    return list(found.rows)


def _parse(url: str) -> HubAddress:
    found = _ADDRESS.fullmatch(url)
    if found is None:
        raise UsageError(f"{url}: expected the form {FORM}")
    revision = found["revision"]
    return HubAddress(
        url=url,
        name=found["name"],
        revision=unquote(revision) if revision else None,
        path=found["path"] or "",
    )


def _list_files(address: HubAddress, *, asks_hub: bool) -> _Listed:
    """Return the Hub's list of files, or those of its cache if the Hub cannot be reached."""
    from huggingface_hub import HfApi

    reason: Exception | None = None
    if asks_hub:
        try:
            info = HfApi().dataset_info(address.name, revision=address.revision)
            names = tuple(file.rfilename for file in info.siblings or ())
            return _Listed(files=names, commit=info.sha)
        except Exception as exc:
            # The types of network errors depend on the HTTP library under the Hub's.
            reason = exc
    try:
        folder = _download(address, address.revision, _list_patterns(address.path), is_local=True)
    except Exception as exc:
        raise UsageError(_explain(address, reason or exc)) from exc
    if reason is not None:
        _log.info(f"{address.url}: the Hub cannot be reached; using the files in its cache")
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
    except Exception:  # Some files are not in the cache.
        files = format_count(len(wanted), "file")
        _log.info(f"{address.url}: downloading {files} at commit {listed.commit[:12]}")
    try:
        # By revision and not by commit, so that the cache can resolve the revision offline.
        return _download(address, address.revision, patterns)
    except Exception as exc:
        raise UsageError(_explain(address, exc)) from exc


def _download(
    address: HubAddress, revision: str | None, patterns: Sequence[str], *, is_local: bool = False
) -> Path:
    """Return the snapshot's folder with the files that match, only those in the cache if `is_local`."""
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
    """Return patterns of the files of rows that `path` can name, for a look-up in the cache."""
    path = path.strip("/")
    if glob.has_magic(path):
        return [path]
    folder = f"{path}/" if path else ""
    return [*([path] if path else []), *(f"{folder}*{ending}" for ending in list_row_endings())]


def _escape(name: str) -> str:
    """Return a pattern that matches only this name."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _explain(address: HubAddress, error: Exception) -> str:
    """Return the reason why the dataset cannot be downloaded, and what to do about it."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/datasets/{address.name}"
    token = "set HF_TOKEN, or `hf auth login`"
    if isinstance(error, errors.GatedRepoError):
        why = f"it is gated: request access at {page}, and {token}"
    elif isinstance(error, errors.RevisionNotFoundError):
        why = f"it has no revision {address.revision!r}; see {page}/tree/main"
    elif isinstance(error, errors.RepositoryNotFoundError):
        why = f"there is no such dataset, or it is private: check the name, and {token}"
    elif isinstance(error, errors.HFValidationError):
        why = f"not a valid name of a dataset; expected the form {FORM}"
    elif isinstance(error, errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError):
        why = "the Hub cannot be reached, and it is not in its cache; check the network, or HF_HUB_OFFLINE"
    else:
        first = str(error).strip().partition("\n")[0]
        why = f"{first[:300] or repr(error)}; check the network"
    return f"{address.url}: cannot be downloaded: {why}"
