"""Block maps: which blocks of which relations the WAL changes, and which relations it makes, shortens and drops. Pure.

Start at `builder.py`: WAL goes in, in its order, and a map comes out for each segment. `changes.py` gathers what the
records of a stretch do: `references.py` the blocks that they register (compiled: `kernel.py`), `events.py` what the few
records that are about files say, `operations.py` which records are known. What is not known makes a gap: a map never
says less than it must. What is left to whoever reads maps is in `model.py`; `repository.maps` stores them.
"""
