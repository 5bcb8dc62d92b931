"""`synthia-batch schema`: the JSON Schema of job files, for editors."""

import json


def schema() -> None:
    """Print the JSON Schema of a job file, for editors that complete and check YAML.

    Save it as job.schema.json and start a job file with the comment
    # yaml-language-server: $schema=job.schema.json
    """
    from synthia_batch.job.loading.json_schema import make_schema

    print(json.dumps(make_schema(), indent=2, ensure_ascii=False))
