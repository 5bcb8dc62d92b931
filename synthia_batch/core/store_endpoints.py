"""The variables by which S3 and Google Cloud Storage are at another address than their own."""

from collections.abc import Mapping

_VARIABLES = {"s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"), "gs": ("GOOGLE_BASE_URL",)}


def find_endpoint(scheme: str, environment: Mapping[str, str]) -> str:
    """Return the address of the stores of `scheme` that `environment` names, "" if it names none."""
    return next((environment[name] for name in _VARIABLES[scheme] if environment.get(name)), "")
