"""The journal of a shard: its samples as CRC-framed lines, appended and replayed."""
