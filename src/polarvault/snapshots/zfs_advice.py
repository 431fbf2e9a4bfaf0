"""What to change on ZFS for a database, and which rights somebody lacks. Pure: what `zfs get` and `zfs allow` print.

Facts: zfsprops(7), zfs-allow(8). A property changes what is written from then on; nothing is written anew by it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

PROPERTIES = ("recordsize", "atime", "sync", "logbias", "compression")
_KB = 1024
_PAGE_BYTES = 8 * _KB
# Above it a page that is written at random makes ZFS read and write many times as much.
_LARGEST_RECORD_BYTES = 32 * _KB
# What snapshots and their clones need; `userprop` carries our id, `mountpoint` is set with a clone.
RIGHTS = ("snapshot", "destroy", "clone", "create", "mount", "userprop", "mountpoint")


def advice(dataset: str, values: Mapping[str, str], *, relies_on_records: bool = False) -> Iterator[str]:
    """Yield what is wrong for a database, and what to type. values: as `zfs get -p` prints them; those not known lack.

    relies_on_records: a page must never be torn, because WAL does not have it whole (PolarDB, full_page_writes = off).
    """
    size = values.get("recordsize", "")
    record = int(size) if size.isdecimal() else None
    if record is not None and record < _PAGE_BYTES and relies_on_records:
        yield (
            f"{dataset} has recordsize={size}, less than a page: with full_page_writes off a page can be torn; "
            f"for files that are written from then on: zfs set recordsize=8K {dataset}"
        )
    if record is not None and record > _LARGEST_RECORD_BYTES:
        yield (
            f"{dataset} has recordsize={record // _KB}K: every page of 8 kB that is written at random costs that much; "
            f"for files that are written from then on: zfs set recordsize=8K {dataset} (16K or 32K with compression)"
        )
    if values.get("atime") == "on":
        yield f"{dataset} has atime=on: every read is a write, which snapshots keep: zfs set atime=off {dataset}"
    if values.get("sync") == "disabled":
        yield f"{dataset} has sync=disabled: a power cut loses commits: zfs set sync=standard {dataset}"
    if values.get("logbias") == "throughput":
        yield f"{dataset} has logbias=throughput: every commit waits longer: zfs set logbias=latency {dataset}"
    if values.get("compression") == "off":
        yield f"{dataset} is not compressed, and so are no snapshots of it: zfs set compression=lz4 {dataset}"


def missing_rights(printed: str, user: str, groups: Collection[str]) -> list[str]:
    """Return the rights that a user lacks by what `zfs allow DATASET` prints."""
    found: set[str] = set()
    for line in printed.splitlines():
        words = line.split()
        if len(words) == 3 and (
            (words[0] == "user" and words[1] == user) or (words[0] == "group" and words[1] in groups)
        ):
            found |= set(words[2].split(","))
        elif len(words) == 2 and words[0] == "everyone":
            found |= set(words[1].split(","))
    return [right for right in RIGHTS if right not in found]
