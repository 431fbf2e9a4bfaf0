"""Use case: read a whole backup and report everything that is wrong with it. Start reading at run.py.

Owns the order of the checks (`run`, `beyond`) and the recognition of the backup's parts (`layout`). `files` reads every
byte once, `manifest` says what should be there, `facts` compares the small files with one another, `pages` judges
pages, `wal` reads the records that the backup needs. Writes nothing, repairs nothing; formats are read in `pgfiles` and
`polarvault.wal`.
"""
