"""The WAL that a backup needs: where it lies, whether every record is there and right. Start reading at check.py."""
