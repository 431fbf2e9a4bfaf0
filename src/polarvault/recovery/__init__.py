"""Recovery of a base backup with WAL, whoever asks for it: a restore, a drill, later a catalogue.

Owns the words of a recovery (`target`, `span`), the way through the WAL (`survey` reads what is there, `chain` decides
which segments count, `search` looks for the target's record), the verdict (`reachability`), the server settings
that follow from it (`settings`), and watching a server while it recovers (`watch`, `log`). Leaves to `walarchive` how
WAL lies in directories, to `wal` what its bytes say, to `instance` how a server is started, and to `restore` the plan
for one backup and the choice among several.
"""
