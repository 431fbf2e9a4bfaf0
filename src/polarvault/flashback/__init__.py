"""Use cases: one table as it was (`table`), and which transactions changed it (`find`).

Start reading at `table.py`. `kept_clone` makes the clone that a table is taken from and removes it whatever happens;
`tables` finds the table in it; `copying` gives it another name there; `dumping` and `target` bring it out. `find.py`
reads WAL: `files` says which files are the table's, `changes` what records do to them, `following` which files it gets.
"""
