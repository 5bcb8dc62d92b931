"""`synthia-batch schema`: the JSON Schema of job files, for editors."""

from synthia_batch.core.formatting import encode_json
from synthia_batch.core.terminal import show


def schema() -> None:
    """Print the JSON Schema of a job file, for editors that complete and check YAML.

    Save it as job.schema.json and start a job file with the comment
    # yaml-language-server: $schema=job.schema.json
    """
    from synthia_batch.job.loading.json_schema import make_schema

    show(encode_json(make_schema(), indent=2))
