"""Models on the Hugging Face Hub: list a repository's files and download them. Uses the Hub's own token."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from synthia_batch.core.digest import DigestCache
from synthia_batch.core.errors import ModelElsewhere, ModelUnavailable
from synthia_batch.core.hub_blob import find_blob_damage
from synthia_batch.core.hub_network import find_network_fault

DESCRIPTION_FILES = ("*.json", "*.model", "*.jinja", "*.txt", "*.py", "README.md")
"""Downloaded with the weights. The card names the licence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """A repository on the Hub.

    `files` are the names of all its files, or None if the Hub cannot be reached: then `reason` says why,
    and only files in the local cache are available.
    """

    name: str
    revision: str | None
    files: tuple[str, ...] | None
    reason: Exception | None

    @property
    def is_out_of_reach(self) -> bool:
        """Whether the network is the reason, and not the Hub's answer."""
        from huggingface_hub.errors import HfHubHTTPError

        return self.reason is not None and not _is_due_to(self.reason, HfHubHTTPError)


def look_up(name: str, revision: str | None) -> Repository:
    """Return the repository `name`, without a list of files if the Hub cannot be reached.

    Raises:
        ModelUnavailable: `name` is not a valid repository name.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(name)
        fault = find_network_fault()
        if fault is not None:
            return Repository(name=name, revision=revision, files=None, reason=fault)
        files = tuple(HfApi().list_repo_files(name, revision=revision))
    except HFValidationError as exc:
        raise ModelUnavailable(f"--model {name}: no such directory, and not a Hub name: {exc}") from exc
    except Exception as exc:
        # Network errors depend on the HTTP library below the Hub's; whichever it was, the files may
        # still be in the cache.
        return Repository(name=name, revision=revision, files=None, reason=exc)
    return Repository(name=name, revision=revision, files=files, reason=None)


def fetch(repository: Repository, patterns: Sequence[str]) -> Path:
    """Download the files that match `patterns`; return the snapshot's directory, named after its commit.

    Raises:
        ModelUnavailable: They are not available; the message says why.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                repository.name,
                revision=repository.revision,
                allow_patterns=list(patterns),
                local_files_only=repository.files is None,
            )
        )
    except Exception as exc:  # As for the list of files.
        kind = ModelElsewhere if repository.is_out_of_reach else ModelUnavailable
        raise kind(explain(repository, exc)) from exc


def check_blob(file: Path, cache: DigestCache) -> None:
    """Raise ModelUnavailable if `file` is in the Hub's cache and is not what its name there says."""
    damage = find_blob_damage(file, cache)
    if damage is not None:
        raise ModelUnavailable(f"--model: {damage}")


def read_sizes(repository: Repository) -> dict[str, int]:
    """Return the sizes in bytes of the repository's files, as far as the Hub reports them."""
    from huggingface_hub import HfApi

    try:
        listed = HfApi().model_info(repository.name, revision=repository.revision, files_metadata=True)
        return {file.rfilename: file.size for file in listed.siblings or () if file.size is not None}
    except Exception:  # As for the list of files; unknown sizes are not checked.
        return {}


def explain(repository: Repository, error: Exception) -> str:
    """Return why the model is not available from the Hub, and what to do about it."""
    reason = repository.reason or error
    name = repository.name
    why = _explain_refusal(name, repository.revision, reason)
    return (
        f"--model {name}: not a local directory, and not available from the Hub: "
        f"{why or f'{reason}; check the name and the network'}; or run without --model for the embedded model"
    )


def _explain_refusal(name: str, revision: str | None, reason: Exception) -> str | None:
    from huggingface_hub import errors, get_token

    if isinstance(reason, errors.OfflineModeIsEnabled):
        return (
            "HF_HUB_OFFLINE is set, and the model is not in the Hub's cache; unset it, or first download the "
            f"model with `hf download {name}`"
        )
    if get_token() is None:
        token = "no token is set: create one at https://huggingface.co/settings/tokens, and set HF_TOKEN"
    else:
        token = "the token in use (HF_TOKEN, or `hf auth login`) has no access to it"
    # More specific errors first: GatedRepoError is a subclass of RepositoryNotFoundError.
    if _is_due_to(reason, errors.GatedRepoError):
        return (
            f"it is gated: ask for access at https://huggingface.co/{name}, signed in as the token's owner; "
            f"{token}"
        )
    if _is_due_to(reason, errors.RevisionNotFoundError):
        return f"it has no revision {revision!r}: see https://huggingface.co/{name}/tree/main"
    if _is_due_to(reason, errors.RepositoryNotFoundError):
        return f"there is no such repository, or it is private: check the name; {token}"
    return None


def _is_due_to(error: BaseException | None, kind: type[Exception]) -> bool:
    """Whether `error` or one of its causes is of `kind`."""
    seen = 0
    while error is not None and seen < 10:
        if isinstance(error, kind):
            return True
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False
