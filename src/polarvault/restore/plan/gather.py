"""Ask for everything that a restore is decided from: once, in one order, from cheap to dear. Nothing is written.

The backup, then this machine about the places that the backup needs, then the primary, then the WAL, which can take
minutes to read. After each answer what it refuses is refused, by the pure judges of the same package, so that nobody
waits for the next answer in vain.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

from polarvault.backupset.backup import Backup
from polarvault.backupset.model import CONTROL_NAME, Area, Form, Inventory
from polarvault.backupset.saved_configuration import saved_beside
from polarvault.errors import BackupUnusable, StartFailed, UsageError
from polarvault.instance.account import working_as_account
from polarvault.instance.debian import DebianCluster
from polarvault.instance.host import Host
from polarvault.instance.model import Account, Binaries
from polarvault.instance.programs import find_binaries, find_program, missing_binaries
from polarvault.pgfiles.control import parse_known_control
from polarvault.recovery.survey import ScanProgress
from polarvault.restore.facts import BackupFacts, Existing, HostFacts, Place, RestoreFacts
from polarvault.restore.model import Layout, RestoreRequest
from polarvault.restore.plan.configuration import PutBack, check_put_back, plan_put_back
from polarvault.restore.plan.incremental import combined, plan_chain
from polarvault.restore.plan.integrity import check_integrity
from polarvault.restore.plan.outside import look_outside
from polarvault.restore.plan.pfs_place import look_at_pfs
from polarvault.restore.plan.places import check_pfs, check_port, check_targets, is_staged, port_of
from polarvault.restore.plan.recovery import check_known, plan_recovery
from polarvault.restore.plan.roles import RoleRules, rules_of
from polarvault.restore.plan.roles.storage import storage_directory


def gather(request: RestoreRequest, host: Host, scan_progress: ScanProgress = lambda done, total: None) -> RestoreFacts:
    """Return the facts about the restore of one backup; raise for whatever they refuse.

    scan_progress is called while WAL is read.
    """
    rules = rules_of(request.role)
    source = request.shelf.find(
        request.backup,
        shared_from=request.shared_from, force=request.force, local_only=rules.takes_local_half_only,
    )  # fmt: skip
    owned = next((part.path for part in source.parts), None)
    if request.delta and host.occupant(request.target) is not None:
        owned = request.target
    account = host.account(request.owner, owned)
    # What root may read and the account may not is read only where no link has led: see PlainTree.
    with working_as_account(account):
        inventory = source.look_through()
    chain = () if rules.takes_local_half_only else plan_chain(request, source, inventory)
    backup = rules.judge_backup(request, source, combined(chain) if chain else inventory, chain)
    here = look_at_host(request, backup, rules, host, account)
    # After all that says more exactly what is wrong: a half that is not here, halves that do not belong together.
    backup = _compared(request, backup, rules, inventory)
    if rules.surveys_wal(request):
        check_known(backup)
    here = _with_programs(request, backup, here)
    facts = RestoreFacts(backup=backup, host=here)
    if request.primary_conninfo is not None:
        # Loaded here: what speaks to a primary loads libpq, which a plain restore can do without.
        from polarvault.restore.standby.asking import ask_about_primary

        facts = replace(facts, primary=ask_about_primary(request, backup, here, host))
    if rules.surveys_wal(request):
        facts = replace(facts, recovery=plan_recovery(request, backup, account, scan_progress))
    return facts


def look_at_host(
    request: RestoreRequest, backup: BackupFacts, rules: RoleRules, host: Host, account: Account
) -> HostFacts:
    """Ask this machine about the places that the backup needs; raise for what cannot be used."""
    layout = rules.storage(request).layout(request, backup)
    source = backup.source
    staged = is_staged(source)
    sources = frozenset() if staged else _source_paths(source, backup.inventory, host)
    places = look_at_places(layout, host, staged=layout.local if staged else None)
    existing = _existing(request, backup, layout, places, account)
    kept = existing.occupied if existing is not None else frozenset()
    check_targets(layout, places, sources, backup.inventory.tablespaces, kept=kept)
    in_pfs = None
    if layout.pfs is not None and layout.shared is not None:
        in_pfs = look_at_pfs(layout.pfs, host)
        check_pfs(layout, in_pfs)
    cluster = _debian_cluster(request, layout, backup.major_version, host)
    put_back = _put_back(request, backup, layout, cluster, host)
    if put_back is not None:
        cluster = put_back.cluster or cluster
    is_confined = request.confined_to is not None
    outside, configuration = look_outside(backup, layout, put_back, cluster, host, account, is_confined=is_confined)
    port = port_of(request, configuration)
    saved = saved_beside(source.path)
    here = HostFacts(
        account=account,
        layout=layout,
        places=places,
        shares_extents=_shares_extents(source, layout, host),
        outside=outside,
        takes_direct_io=layout.shared is None or layout.pfs is not None or host.takes_direct_io(layout.shared),
        cluster=cluster,
        put_back=put_back,
        saved_configuration=saved if host.exists(saved) else None,
        taken_port=port if port is not None and host.port_is_taken(port) else None,
        wal_directories_hold_files=all(host.list_names(directory) for directory in request.recovery.wal_directories),
        storage_path=host.real_path(storage_directory(layout.live_datadir)) if layout.live_datadir else None,
        existing=existing,
        pfs=in_pfs,
    )
    check_port(request, here)
    rules.check_host(request, backup, here)
    return here


def _existing(
    request: RestoreRequest, backup: BackupFacts, layout: Layout, places: tuple[Place, ...], account: Account
) -> Existing | None:
    """Return the cluster that a delta restore goes on with; None where there is none, or none is wanted."""
    if not request.delta:
        return None
    # Loaded here: what compares takes numpy.
    from polarvault.restore.delta.existing import examine

    with working_as_account(account):
        return examine(request, backup, layout, places, account)


def look_at_places(layout: Layout, host: Host, *, staged: str | None = None) -> tuple[Place, ...]:
    """Look at every directory that is to be filled; what was put together inside of `staged` does not count."""
    places = []
    for path in layout.roots:
        device, available = host.available_bytes(path)
        real_path = host.real_path(path)
        occupant = host.occupant(path) if path != staged else None
        places.append(Place(path, real_path, device, available, occupant, host.enclosing_occupant(real_path)))
    return tuple(places)


def complete(
    request: RestoreRequest, facts: RestoreFacts, found: Mapping[tuple[Area, str], bytes], host: Host
) -> RestoreFacts:
    """Return the facts with files that lay too deep in a compressed tar to be seen before it was unpacked.

    Of this machine only what their settings name is asked anew.
    """
    backup, here = facts.backup, facts.host
    control = parse_known_control(found[Area.SHARED, CONTROL_NAME], backup.major_version)
    inventory = backup.inventory
    inventory = replace(
        inventory, control=control, is_newer=inventory.is_newer or control is None, files={**inventory.files, **found}
    )
    judged = rules_of(request.role).judge_backup(request, backup.source, inventory)
    backup = replace(backup, inventory=inventory, label=judged.label)
    outside, _ = look_outside(
        backup, here.layout, here.put_back, here.cluster, host, here.account,
        is_confined=request.confined_to is not None,
    )  # fmt: skip
    return replace(facts, backup=backup, host=replace(here, outside=outside))


def _compared(request: RestoreRequest, backup: BackupFacts, rules: RoleRules, listed: Inventory) -> BackupFacts:
    """Return the facts with what is not as the manifest says; raise IntegrityError unless that is accepted."""
    found, warnings = check_integrity(request, backup.source, listed, local_only=rules.takes_local_half_only)
    warnings += [warning for link in backup.chain for warning in link.warnings]
    return replace(backup, disagreements=found, warnings=tuple(warnings))


def _source_paths(source: Backup, inventory: Inventory, host: Host) -> frozenset[str]:
    if source.form is Form.REPOSITORY:
        words = [word for archive in source.archives for word in archive.fetch_options()]
        return frozenset(host.real_path(word) for word in words if os.path.isabs(word) and os.path.isdir(word))
    paths = {source.path, *(part.path for part in source.parts)}
    paths |= {space.copy for space in inventory.tablespaces if space.copy}
    return frozenset(map(host.real_path, paths))


def _shares_extents(source: Backup, layout: Layout, host: Host) -> bool:
    return (
        source.form is Form.PLAIN
        and layout.pfs is None
        and all(
            host.shares_extents(part.path, layout.data if part.area is Area.SHARED else layout.local)
            for part in source.parts
        )
    )


def _debian_cluster(request: RestoreRequest, layout: Layout, major: int, host: Host) -> DebianCluster | None:
    """Return the cluster in /etc/postgresql that the data directory belongs to; it must be of the backup's version.

    A throw-away copy belongs to none, and a replica is started with the postgresql.conf that arms it.
    """
    if request.confined_to is not None or layout.live_datadir is not None:
        return None
    cluster = host.debian_cluster(layout.local)
    if cluster is not None and cluster.version != str(major):
        raise UsageError(
            f'"{layout.local}" is the data directory of the cluster {cluster} ({cluster.main_file}), and the backup '
            f"is of PostgreSQL {major}",
            hint=f"make a cluster of that version and restore into its data directory: pg_createcluster {major} NAME",
        )
    return cluster


def _put_back(
    request: RestoreRequest, backup: BackupFacts, layout: Layout, cluster: DebianCluster | None, host: Host
) -> PutBack | None:
    if request.configuration is None:
        return None
    saved = backup.source.saved_configuration()
    if saved is None:
        raise BackupUnusable(
            f"no configuration is kept with {backup.source.path}",
            hint="leave --configuration out; it is kept by: polarvault basebackup --copy-configuration",
        )
    put = plan_put_back(
        request.configuration,
        saved,
        data_directory=layout.local, major=backup.major_version, owner=cluster,
    )  # fmt: skip
    # In a new data directory nothing can be there.
    if put.cluster is not None:
        check_put_back(put, {path: host.read(path) for path in put.files if host.exists(path)})
    return put


def _with_programs(request: RestoreRequest, backup: BackupFacts, here: HostFacts) -> HostFacts:
    """Return the facts with the programs that fit; raise StartFailed if those that are needed are not there."""
    binaries = _binaries(request, backup, here.account)
    combine_program = None
    if backup.chain:
        major = backup.major_version
        combine_program = find_program(
            "pg_combinebackup", major, here.account, bindir=request.bindir, environment=os.environ
        )
        if combine_program is None:
            raise StartFailed(
                f"no pg_combinebackup of PostgreSQL {major} was found, and the incremental backup needs "
                "exactly this one; nothing was written",
                hint="name the directory that holds it: --bindir DIRECTORY",
            )
    return replace(here, binaries=binaries, combine_program=combine_program)


def _binaries(request: RestoreRequest, backup: BackupFacts, account: Account) -> Binaries | None:
    major, polardb = backup.major_version, backup.is_polardb
    found, rejected = find_binaries(major, account, polardb=polardb, bindir=request.bindir, environment=os.environ)
    if found is None and (request.start or request.bindir):
        raise missing_binaries(major, rejected, polardb=polardb)
    return found
