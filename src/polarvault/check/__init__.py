"""Use case: can this server be backed up, and would the backup restore? Start reading at run.py.

Each area asks the server (`read_...`) and judges the answers (`judge_...`, pure) in a module of its own; what only
PolarDB has is in `polardb`. Changes nothing on the server. Leaves to `restore` whether a certain backup restores.
"""
