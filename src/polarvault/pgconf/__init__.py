"""postgresql.conf and its relatives: parse and edit without losing a comment. No I/O."""
