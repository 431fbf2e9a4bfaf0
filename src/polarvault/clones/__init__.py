"""Use case: a copy of a cluster that is there in seconds, runs, can be written, and leaves what it came from alone.

Start reading at `create.py`. `area` is the directory that holds clones and base copies, and what they say of
themselves; `base` makes a base copy once, of which clones are made by reflink; `control` starts, stops and removes;
`watching` is the small process beside a clone that enforces its limits. How its server is kept apart is
the drill's (`drill.place`), how it is laid out is restore's.
"""
