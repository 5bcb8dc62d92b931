"""Everything that a run keeps on disk, and every decision about when it is there to stay.

    finished sample ──> journal/shard-00007.wal        one write: finished
                              │  fdatasync             every second or 64 samples: survives power loss
                              ▼  (the shard's last sample is in)
    1  fdatasync the journal             nothing is promised that is not on the disk
    2  intents.wal: sha256, bytes, rows  + fsync: what the part must be, before it exists
    3  data/.train-00007-....tmp         + fsync: whole, but under a name that nobody reads
    4  rename to data/train-00007-....   whole or not at all: the commit point of the shard
    5  fsync data/                       the name, too, survives power loss
    6  unlink the journal                its samples now live in the part
                              │  (the run's last shard is in)
                              ▼
    manifest.json                        the same way, last: the run is complete

A crash before 4 leaves the journal, from which the same bytes are made again; a crash after 5 leaves
a journal too many, which recovery removes; between the two, power decides which of these it is.

    run_dir      every path, once                  lock        one owner per directory, and the epoch
    atomic       write, fsync, rename              plan_file   what the run is: written once
    append_file  a file that only grows            manifest    what the run became: written last
    frames       one checked line per record       part        Parquet, the same bytes for the same rows
    journal      finished samples of a shard       publish     steps 1 to 6
    journal_reader  a journal read back            part_rows   parts read back: which samples they hold
    intents      what each part must be            recovery    what a crash left, and what to do about it
    attempt      who writes, since which boot      events      the history, for people
    sealed       JSON files that carry a digest    part_pages  every page's checksum, unread
"""
