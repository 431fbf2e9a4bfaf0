"""The index of a backup: tables of pieces, page sums, the chunked table of files, the root. Bytes in, values out."""
