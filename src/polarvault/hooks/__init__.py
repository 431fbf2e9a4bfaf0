"""Commands of the user that are told what has happened: `on_success`, `on_warning`, `on_failure` of the configuration.

Owns how such a command is run; what it is told, and when, is left to whoever calls (`cli.hooks`).
"""
