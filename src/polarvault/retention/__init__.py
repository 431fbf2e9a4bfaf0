"""Use case: remove what a policy does not keep. `policy` (pure), `plan` (pure), `apply`; start at `expire.py`."""
