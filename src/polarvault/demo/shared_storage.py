"""A PolarDB primary to throw away: a local data directory and a shared one on this machine ("localfs" mode)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from polarvault.demo.server import ThrowawayServer

# What PolarDB's own sample configuration sets for a shared-storage node, with smaller buffers.
_SETTINGS = {
    "polar_enable_shared_storage_mode": "on",
    "polar_vfs.localfs_mode": "on",
    "polar_disk_name": "home",
    "shared_preload_libraries": (
        "$libdir/polar_vfs,$libdir/polar_io_stat,$libdir/polar_monitor_preload,$libdir/polar_worker"
    ),
    "polar_logindex_mem_size": "64MB",
    "polar_xlog_queue_buffers": "64MB",
    "polar_xlog_page_buffers": "64MB",
    "polar_has_partial_write": "on",
    "full_page_writes": "off",
    "shared_buffers": "128MB",
    "max_prepared_transactions": "10",
    "huge_pages": "off",
}


def create_on_shared_storage(
    server: ThrowawayServer,
    shared: Path,
    *,
    options: Sequence[str] = (),
    settings: Mapping[str, str] | None = None,
    protocol: str = "file-dio://",
) -> None:
    """Create a primary whose shared half is `shared`; protocol precedes the path in polar_datadir, or is empty."""
    server.create(
        options=["--data-checksums", *options],
        settings={**_SETTINGS, "polar_datadir": f"{protocol}{shared}", **(settings or {})},
    )
    server.account.make_directory(shared)
    # The program wants both paths absolute and with a slash at the end.
    server.run("polar-initdb.sh", f"{server.data}/", f"{shared}/", "primary", "localfs")
