"""Online backup, WAL archiving and recovery for PolarDB on shared storage and for PostgreSQL 13-19."""

__version__ = "0.1.0"
