"""Use case: prove that a backup restores, by restoring it. Start reading at run.py.

`place` is where the copy runs: its directory, its walls, its server. `look` is what is looked at in it. Here is the way
from the request to the report. Leaves laying the copy out to `restore`, and replay to `recovery`.
"""
