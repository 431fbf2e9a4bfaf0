"""WAL in a repository: range objects (`ranges`), and what a stream writes into them (`sink`)."""
