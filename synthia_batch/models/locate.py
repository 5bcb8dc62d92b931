"""From a model's name to a directory with its files, downloaded or converted if necessary."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from synthia_batch.core.digest import DigestCache, digest_file, digest_json, open_digest_cache
from synthia_batch.core.errors import ModelUnavailable
from synthia_batch.core.hub_blob import SHA256_DIGITS, find_blob
from synthia_batch.core.telemetry import keep_private
from synthia_batch.job.sections import DEMO_MODEL
from synthia_batch.models.checkpoint import read_template
from synthia_batch.models.demo import prepare_demo_model
from synthia_batch.models.gguf import (
    SUFFIX,
    HubFile,
    choose_files,
    estimate_dequantized_bytes,
    find_local_parts,
    join_parts,
    list_quantizations,
    parse_hub_name,
    prepare_directory,
)
from synthia_batch.models.gguf_header import read_gguf_header
from synthia_batch.models.hub import (
    DESCRIPTION_FILES,
    Repository,
    check_blob,
    explain,
    fetch,
    look_up,
    read_sizes,
)
from synthia_batch.models.tokenizer_file import TOKENIZER_FILES

_HUB_WEIGHTS = (".safetensors", ".bin", ".pt")
"""Suffixes of weight files, in the order in which engines prefer them."""
_NOT_WEIGHTS = frozenset(
    ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.bin", "scheduler.pt", "scaler.pt")
)
"""Left over from training; engines skip them too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocatedModel:
    """A model's directory, and its repository on the Hub if it came from there.

    `revision` is the commit of the files. `gguf` is the weights file if engines read GGUF directly: the
    directory then only holds config and tokenizer.
    """

    name: str
    path: Path
    repo_id: str | None
    revision: str | None
    gguf: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPreview:
    """Facts known about a model before its weights are downloaded or converted.

    `describes_itself` is false while its chat template is unknown. `weights_bytes` is the least size of
    the weights in an engine's memory, None if unknown.
    """

    name: str
    chat_template: str | None = None
    describes_itself: bool = True
    weights_bytes: int | None = None
    is_gguf: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LocateOptions:
    """The `device` that will run the model, and a `check` that may raise before a costly download."""

    device: Literal["cpu", "cuda"] = "cpu"
    check: Callable[[ModelPreview], None] = lambda preview: None


def locate_model(name: str, revision: str | None, options: LocateOptions | None = None) -> LocatedModel:
    """Return the location of the model `name`, downloading or converting it first if necessary.

    Raises:
        ModelUnavailable: There is no such directory or repository, it cannot be reached, or it has
            no weights.
    """
    keep_private()
    options = options or LocateOptions()
    if name == DEMO_MODEL:
        return LocatedModel(
            name="SmolLM2-135M-Instruct", path=prepare_demo_model(), repo_id=None, revision=None
        )
    path = Path(name).expanduser()
    if path.is_dir():
        return _locate_directory(path.resolve(), options)
    parts = find_local_parts(path.absolute())
    if parts:
        return _prepare_gguf(parts, LocatedModel(name="", path=path, repo_id=None, revision=None), options)
    if path.is_file():
        raise ModelUnavailable(f"{name}: neither a directory nor a {SUFFIX} file; name one of these")
    if path.is_absolute() or name.startswith((".", "~")) or path.suffix.lower() == SUFFIX:
        raise ModelUnavailable(
            f"{name}: no such directory or file; name an existing one, or a Hub repository"
        )
    wanted = parse_hub_name(name)
    if wanted is not None:
        return _download_gguf(name, wanted, revision, options)
    return _download(look_up(name, revision), options)


def digest_model(path: Path, cache: DigestCache, *, gguf: Path | None = None) -> dict[str, str]:
    """Return the digests of a model's `weights` (including its config) and `tokenizer`.

    Of weights in several formats only the one that engines load counts: others in a shared cache do not
    change the model. A large file of the Hub's cache is identified by the SHA-256 in its name. `gguf` is
    the weights file if it is outside the directory.
    """
    weights: dict[str, str] = {} if gguf is None else {"gguf": _digest(gguf, cache)}
    tokenizer: dict[str, str] = {}
    files = sorted(path.iterdir())
    kind = choose_weights(file.name for file in files)
    for file in files:
        target = tokenizer if file.name in TOKENIZER_FILES else weights
        if target is tokenizer or is_weight(file.name, kind) or file.suffix in (".json", ".py"):
            target[file.name] = _digest(file, cache)
    return {"weights": digest_json(weights), "tokenizer": digest_json(tokenizer)}


def _digest(file: Path, cache: DigestCache) -> str:
    check_blob(file, cache)
    blob = find_blob(file)
    if blob is not None and len(blob.name) == SHA256_DIGITS:
        return f"sha256:{blob.name}"
    return digest_file(file, cache)


def choose_weights(names: Iterable[str]) -> str | None:
    """Return the suffix of the weights that an engine loads from the files `names`, or None."""
    listed = list(names)
    return next((kind for kind in _HUB_WEIGHTS if any(is_weight(name, kind) for name in listed)), None)


def is_weight(name: str, kind: str | None) -> bool:
    """Whether the file `name` is a weight file of this kind at the top of a model's directory."""
    return kind is not None and name.endswith(kind) and "/" not in name and name not in _NOT_WEIGHTS


def _locate_directory(path: Path, options: LocateOptions) -> LocatedModel:
    if not (path / "config.json").is_file():
        raise ModelUnavailable(f"{path}: no config.json; name a directory that holds a model")
    if choose_weights(file.name for file in path.iterdir()) is None:
        raise ModelUnavailable(
            f"{path}: no weights ({', '.join(_HUB_WEIGHTS)}); download the model again, "
            "or name the file itself if it is a .gguf"
        )
    options.check(ModelPreview(name=path.name, chat_template=read_template(path)))
    return LocatedModel(name=path.name, path=path, repo_id=None, revision=None)


def _prepare_gguf(parts: tuple[Path, ...], origin: LocatedModel, options: LocateOptions) -> LocatedModel:
    """Return the model in the GGUF file that `parts` make up, prepared for the device."""
    cache = open_digest_cache()
    file = join_parts(parts, cache)
    header = read_gguf_header(file)
    name = origin.name or file.stem
    on_cpu = options.device == "cpu"
    options.check(
        ModelPreview(
            name=name,
            chat_template=header.chat_template,
            weights_bytes=header.dequantized_bytes if on_cpu else file.stat().st_size,
            is_gguf=True,
        )
    )
    path = prepare_directory(file, header, cache, with_weights=on_cpu)
    # Without repo_id: an engine on another machine must find the file or directory there.
    return LocatedModel(
        name=name, path=path, repo_id=None, revision=origin.revision, gguf=None if on_cpu else file
    )


def _download_gguf(name: str, wanted: HubFile, revision: str | None, options: LocateOptions) -> LocatedModel:
    """Download the file with the wanted quantization, or its parts."""
    repository = look_up(wanted.repo_id, revision)
    files = repository.files
    if files is None:
        # Offline: use any file of the quantization in the cache.
        snapshot = fetch(repository, [f"*{SUFFIX}*"])
        files = tuple(str(file.relative_to(snapshot)) for file in snapshot.rglob("*") if file.is_file())
        if not list_quantizations(files):
            raise ModelUnavailable(explain(repository, FileNotFoundError(f"no {SUFFIX} file in the cache")))
    chosen = choose_files(files, wanted)
    sizes = read_sizes(repository) if repository.files is not None else {}
    if all(file in sizes for file in chosen):
        file_bytes = sum(sizes[file] for file in chosen)
        on_cpu = options.device == "cpu"
        least = estimate_dequantized_bytes(file_bytes, wanted.quantization) if on_cpu else file_bytes
        options.check(ModelPreview(name=name, describes_itself=False, weights_bytes=least, is_gguf=True))
    snapshot = fetch(repository, chosen)
    cache = open_digest_cache()
    for file in chosen:  # Joined and converted, they are known by their content alone.
        check_blob(snapshot / file, cache)
    origin = LocatedModel(name=name, path=snapshot, repo_id=wanted.repo_id, revision=snapshot.name)
    return _prepare_gguf(tuple(snapshot / file for file in chosen), origin, options)


def _download(repository: Repository, options: LocateOptions) -> LocatedModel:
    """Download a model from the Hub, with its weights in the one format that engines load.

    The descriptive files come first: refusing a model then costs seconds, not hours.
    """
    name, files = repository.name, repository.files
    kind = choose_weights(files) if files is not None else None
    kinds = _HUB_WEIGHTS if files is None else (kind,) if kind is not None else ()
    for suffix in kinds:
        described = fetch(repository, DESCRIPTION_FILES)
        options.check(ModelPreview(name=name, chat_template=read_template(described)))
        path = fetch(repository, (*DESCRIPTION_FILES, f"*{suffix}"))
        if choose_weights(file.name for file in path.iterdir()) is not None:
            # A snapshot's directory is named after its commit.
            return LocatedModel(name=name, path=path, repo_id=name, revision=path.name)
    where = "its repository" if files is not None else "the Hub cannot be reached, and its cache here"
    quantizations = list_quantizations(files or ())
    hint = f"it has GGUF files: choose one, as in --model {name}:{quantizations[0]}" if quantizations else ""
    raise ModelUnavailable(
        f"--model {name}: {where} has no weights ({', '.join(_HUB_WEIGHTS)}); "
        f"{hint or 'name another model or revision'}"
    ) from repository.reason
