"""Which host gets which secret of the environment when a job runs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from synthia_batch.core.masking import strip_address
from synthia_batch.core.store_endpoints import find_endpoint
from synthia_batch.job.loading.layer import walk_texts
from synthia_batch.job.loading.secrets import REFERENCE
from synthia_batch.job.resolved import ResolvedJob
from synthia_batch.runner.resolve.engine_spec import KEY_VARIABLE

_HUB = "https://huggingface.co"
_HUB_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_STORES = {
    "s3": (("AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN"), "https://s3.amazonaws.com"),
    "gs": (("GOOGLE_APPLICATION_CREDENTIALS",), "https://storage.googleapis.com"),
}
"""The credentials of each kind of store, and its own address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretUse:
    """The `host` gets the value of `variable`, because of the job's `key`."""

    variable: str
    host: str
    key: str


def list_secret_uses(job: ResolvedJob, environment: Mapping[str, str]) -> tuple[SecretUse, ...]:
    """Return which host gets which variable of `environment` when `job` runs."""
    found = (*_list_of_engine(job, environment), *_list_of_notify(job), *_list_of_stores(job, environment))
    return tuple(dict.fromkeys(found))


def _list_of_engine(job: ResolvedJob, environment: Mapping[str, str]) -> Iterator[SecretUse]:
    settings = job.declared.engine.settings
    hub = _find_host(environment.get("HF_ENDPOINT") or _HUB)
    if job.engine.is_elsewhere:
        host = _find_host(str(settings["base_url"]))
        for key, text in walk_texts({name: settings.get(name) for name in ("api_key", "extra_body")}):
            for variable in REFERENCE.findall(text):
                yield SecretUse(variable=variable, host=host, key=f"engine.{key}")
        if not settings.get("api_key") and environment.get(KEY_VARIABLE):
            yield SecretUse(variable=KEY_VARIABLE, host=host, key="engine.base_url")
    for variable in REFERENCE.findall(str(settings.get("hf_token") or "")):
        yield SecretUse(variable=variable, host=hub, key="engine.hf_token")
    reads_hub = any(path.startswith("hf://") for path in job.declared.input.paths)
    for key, is_hub in (("model.name", job.model.repo_id is not None), ("input.path", reads_hub)):
        for variable in _HUB_VARIABLES if is_hub else ():
            if environment.get(variable):
                yield SecretUse(variable=variable, host=hub, key=key)


def _list_of_notify(job: ResolvedJob) -> Iterator[SecretUse]:
    for url in job.declared.notify or ():
        for variable in REFERENCE.findall(url):
            yield SecretUse(variable=variable, host=_find_host(url), key="notify")


def _list_of_stores(job: ResolvedJob, environment: Mapping[str, str]) -> Iterator[SecretUse]:
    addresses = [("input.path", path) for path in job.declared.input.paths]
    addresses.append(("output", str(job.declared.output)))
    for key, address in addresses:
        scheme = address.partition("://")[0]
        if scheme not in _STORES:
            continue
        variables, own = _STORES[scheme]
        host = _find_host(find_endpoint(scheme, environment) or own)
        for variable in variables:
            if environment.get(variable):
                yield SecretUse(variable=variable, host=host, key=key)


def _find_host(url: str) -> str:
    """Return the host of an address; its scheme, a service's name, if the host is a reference itself."""
    if "://" not in url:
        return "the address in it"
    host = urlsplit(strip_address(url)).netloc
    return url.partition("://")[0] if "$" in host or not host else host
