"""Use case: can this server be backed up, and would the backup restore? Start reading at run.py.

Each area asks the server (`read_...`) and judges the answers (`judge_...`, pure) in a module of its own: `connection`
whether a backup gets in, `wal` whether its WAL is kept, `files` what it holds, `polardb` what only PolarDB has. What
all of them ask through lies here. Changes nothing on the server. Leaves to `restore` whether a certain backup restores.
"""
