"""The whole way once: a backup is taken, verified, restored, started and compared; a part of `make test-fast`."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.cluster import Cluster
from support.program import run_polarvault

pytestmark = [pytest.mark.postgres, pytest.mark.quick]


def test_a_backup_is_taken_verified_and_restored(pg18: Cluster, workspace: Path) -> None:
    backup, target = workspace / "backup", workspace / "restored"
    run_polarvault("basebackup", "-d", pg18.conninfo(), "-D", backup, "-c", "fast", "-N")
    run_polarvault("verifybackup", backup)
    restored = Cluster(pg18.installation, workspace)
    restored.data = target
    try:
        run_polarvault(
            "restore", backup, "-D", target, "--port", str(restored.port), "--bindir", pg18.installation.directory,
            "--set", f"unix_socket_directories={workspace}", "--set", "fsync=off", "-N", "--start",
        )  # fmt: skip
        assert restored.hashes() == pg18.hashes()
    finally:
        restored.stop("immediate")
