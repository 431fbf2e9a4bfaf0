"""The command line: starts quickly, finds the command, renders errors, chooses the exit status.

Start reading at `entry.py`. What every command needs lies here (errors, `--json`, signals), the commands themselves in
`commands`, except `wal fetch`, which a recovery starts once for each segment and which passes everything else by.
"""
