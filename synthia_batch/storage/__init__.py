"""Everything a run keeps on disk, and every decision about when it is durable.

    finished sample ──> journal/shard-00007.wal        one write: finished
                              │  fdatasync             every second or 64 samples: survives power loss
                              ▼  (when the shard's last sample is in)
    1  fdatasync the journal             the ledger may only promise what is on disk
    2  intents.wal: sha256, bytes, rows  + fsync: the part's expected content, before the part exists
    3  data/.train-00007-....tmp         + fsync: complete, but under a name that no reader looks for
    4  rename to data/train-00007-....   all or nothing: the commit point of the shard
    5  fsync data/                       the new name survives power loss
    6  unlink the journal                its samples are now in the part
                              │  (when the run's last shard is in)
                              ▼
    manifest.json                        published the same way, last: the run is complete

After a crash before 4 the journal is still there, and the same bytes are regenerated from it. After a
crash past 5 the journal may be left over, and recovery removes it. Between the two, power loss may leave
either state.

    layout      every path of a run directory         lock         one owner per directory, and the epoch
    atomic      write, fsync, rename                  plan_file    the run's identity, written once
    ledger      expected content of each part         manifest     the run's result, written last
    journal/    finished samples of a shard           publish      steps 1 to 6
    parts/      Parquet: same rows, same bytes        recovery     finds and resolves crash leftovers
    saved_job   the job as last run, for retries      events       the history, for people
    remote/     the same run in an object store
"""
