"""Page sums: 16 bytes of a keyed hash for every page, which say what differs from an earlier backup.

`definition` says what a sum is, and computes it with numpy; `kernel` emits the same as machine code.
"""
