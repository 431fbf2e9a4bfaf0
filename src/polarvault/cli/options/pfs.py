"""How PFS is reached: options of the official tool, and the one that takes a disk from whoever has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from polarvault.errors import UsageError

if TYPE_CHECKING:
    from polarvault.model.pfs_address import PfsAddress


def pfs_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that commands which use PFS have in common."""
    for option in (
        click.option("--pfs-force", is_flag=True, help="PFS: take the disk over from whoever has it mounted."),
        click.option(
            "--polar_storage_cluster_name", "--polar-storage-cluster-name", metavar="NAME",
            help="PFS: what the storage of the disk is called; default: as in the source, else disk.",
        ),
        click.option(
            "--polar_disk_name", "--polar-disk-name", metavar="DISK",
            help="PFS: the disk; --polardata is a bare path on it then, /DISK/DIR.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def check_pfs_options(address: PfsAddress | None, *, disk: str | None, cluster: str | None, force: bool) -> None:
    """Raise UsageError for options of PFS where nothing lies in PFS."""
    for option, value in (
        ("--polar_disk_name", disk),
        ("--polar_storage_cluster_name", cluster),
        ("--pfs-force", force),
    ):
        if value and address is None:
            raise UsageError(
                f"{option} is for a shared half in PFS", hint="say where: --polardata pfsd:///DISK/DIRECTORY"
            )
