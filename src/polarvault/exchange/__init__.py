"""Backups between a repository and the files that other tools read: `export` and `taking_in` (import).

It knows both sides and neither in depth: files are written by the targets of `basebackup`, as if a server had sent
them, and read by `backupset`; the repository's side is `BackupReader` and `BackupWriter`.
"""
