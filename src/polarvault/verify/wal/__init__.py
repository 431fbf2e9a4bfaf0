"""The WAL that a backup needs: whether every record is there and right. Start reading at check.py."""
