"""The configuration file: one TOML file that names repositories and clusters. Knows no server.

`schema` is the table of all settings, from which the loader, `config show` and docs/configuration.md are made; `values`
parses single ones; `positions` finds the lines, which tomllib does not tell; `load` checks the whole file and reports
every mistake at once; `model` is the result. Nothing here opens a repository or a connection, and every command works
without a file. `words` is beside it: what a bare word on a command line means.
"""
