"""A run's files in an object store, beside the state directory in which the run goes on.

The state directory is a run directory as any other: the same lock, journals, ledger and parts, published
in the same way. What is published there is then put into the store, under the same names:

    .synthia/lease.json    who may write here, until when        create, then compare-and-swap
    .synthia/plan.json     what the run is: first, and once      create
    .synthia/canary.json   what the engines must answer          create
    .synthia/job.json      the job as last said, for `retry`     compare-and-swap
    failed/, data/         parts, each with its ledger entry     create; compare-and-swap after a retry
    README.md              once every part is there              compare-and-swap
    manifest.json          last: the run is complete there       create; removed before a part changes

No request overwrites blindly: each says what it expects to find (If-None-Match: *, or If-Match with the
ETag that was seen), and the store refuses it where something else is there. So a request that arrives
late, from a writer that was stopped and has been replaced, changes nothing that was put since.

    object_store   the requests, tried again        lease    one writer per prefix
    notes          what an object says of itself    mirror   puts what is published, in a thread
    adopt          a lost state directory made      copies   a run in a store looked at
                   again from the store
"""
