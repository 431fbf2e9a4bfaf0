"""What only PolarDB has: shared storage, replicas and their slots, large segments. Start reading at run.py."""
