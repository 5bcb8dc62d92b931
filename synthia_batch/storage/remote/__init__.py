"""A run's files in an object store, next to the state directory in which the run is written.

The state directory is an ordinary run directory, with the same lock, journals, ledger and parts. Whatever
is published there is then put into the store under the same name:

    .synthia/lease.json    who may write here, until when        create, then compare-and-swap
    .synthia/plan.json     the run's identity: first, and once   create
    .synthia/canary.json   expected answers of the engines       create
    .synthia/job.json      the job as last run, for `retry`      compare-and-swap
    failed/, data/         parts, each with its ledger entry     create; compare-and-swap after a retry
    README.md              once every part is there              compare-and-swap
    manifest.json          last: marks the run as complete       create; removed before a part changes

No request overwrites blindly: each states what it expects to find (If-None-Match: *, or If-Match with the
ETag that was seen), and the store refuses it otherwise. So a late request from a writer that was stopped and
replaced changes nothing that was put since.

    object_store     the requests, with retries          lease      one writer per prefix
    object_metadata  metadata stored with each object    claim      takes a prefix for one run
    mirror           puts published files, in a thread   restore    rebuilds a lost state directory
    download         status and copies of a remote run
"""
