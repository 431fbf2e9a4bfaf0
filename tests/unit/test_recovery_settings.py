"""-R on PolarDB: a copy that starts, and never on the server's own storage."""

from __future__ import annotations

from polarvault.basebackup.recovery_settings import storage_settings

ON_PFS = {
    "polar_enable_shared_storage_mode": "on",
    "polar_datadir": "/disk1/data/",
    "polar_vfs.localfs_mode": "off",
    "polar_disk_name": "disk1",
    "polar_storage_cluster_name": "disk",
    "polar_hostid": "3",
}


def test_a_copy_of_a_server_on_pfs_is_cut_off_from_pfs() -> None:
    assert storage_settings("/b/shared", ON_PFS.get) == {
        "polar_datadir": "file-dio:///b/shared",
        "polar_vfs.localfs_mode": "on",
        "polar_disk_name": "home",
        "polar_storage_cluster_name": "localfs",
        "polar_hostid": "1",
    }


def test_a_copy_of_a_server_on_an_ordinary_file_system_gets_its_own_directory_only() -> None:
    local = ON_PFS | {"polar_datadir": "file-dio:///live", "polar_vfs.localfs_mode": "on"}
    assert storage_settings("/b/shared", local.get) == {"polar_datadir": "file-dio:///b/shared"}
    # A server that was set to buffered I/O stays so, as after a restore.
    buffered = local | {"polar_datadir": "file:///live"}
    assert storage_settings("/b/shared", buffered.get) == {"polar_datadir": "file:///b/shared"}
