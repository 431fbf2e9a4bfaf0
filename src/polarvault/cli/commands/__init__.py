"""One file per command: parse, call one use case, render, choose the exit status. Found by name by `cli/main.py`."""
