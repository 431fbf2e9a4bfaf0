"""Machine code for the few inner loops: C speed without a build step.

`language` is the one way to write such a loop, `compiling` makes code of it in memory. Owns nothing of what the loops
do: the WAL reader is in `polarvault.wal.compiled`, page checksums are in `polarvault.pgfiles.page_kernel`, and each of
them has a second implementation for systems where no code can be generated.
"""
