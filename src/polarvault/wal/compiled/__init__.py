"""The WAL reader as machine code: same rules and same results as `polarvault.wal.records`, a hundred times as fast."""
