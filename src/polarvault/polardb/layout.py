"""The two halves of a PolarDB cluster on shared storage, and what in them a restore has no use for.

Source: facts, section 2: every rule was measured by restoring without the item, then starting, writing, promoting.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from polarvault.pgfiles.tar import Member, MemberKind

SHARED_HALF_NAME = "polar_shared_data"
REPLICA_SIGNAL = "replica.signal"

# Contents only: the directories themselves are needed.
_LOCAL_CONTENTS = re.compile(
    r"(?:polar_fullpage|pg_logindex|polar_rel_size_cache|polar_cache_trash"
    r"|pg_xact|pg_multixact/offsets|pg_multixact/members|pg_commit_ts)/."
)
_LOCAL_FILES = re.compile(
    r"(?:current_logfiles|polar_shmem_stat_file|polar_replica_booted|backup_label\.old|polar_node_static\.conf"
    r"|polar_non_exclusive_backup_label|polar_non_exclusive_tablespace_map|[^/]+\.signal"
    # What an earlier backup of ours says of itself, if the server was restored from one.
    r"|polarvault_backup\.json|backup_manifest\.(?:server|shared))\Z"
)
_SHARED_CONTENTS = re.compile(r"(?:polar_fullpage|pg_logindex)/.")
_SHARED_FILES = re.compile(r"(?:polar_non_exclusive_backup_label|polar_non_exclusive_tablespace_map|[^/]+\.signal)\Z")


@dataclass(frozen=True, slots=True)
class KeepRules:
    """Decides for one half which members are worth writing; log_directory as the server reports it."""

    shared: bool
    log_directory: str = "log"

    def __call__(self, member: Member) -> bool:
        """Tell whether to write the member; directories are always kept (facts 2.1: empty ones are mandatory)."""
        if member.kind is MemberKind.DIRECTORY:
            return True
        if self.shared:
            return not (_SHARED_CONTENTS.match(member.name) or _SHARED_FILES.match(member.name))
        if _LOCAL_CONTENTS.match(member.name) or _LOCAL_FILES.match(member.name):
            return False
        log_directory = self.log_directory.strip("/")
        inside = not self.log_directory.startswith("/") and log_directory not in ("", ".")
        return not (inside and member.name.startswith(log_directory + "/"))


def keep_everything(_: Member) -> bool:
    """Keep every member: PostgreSQL's own archives, and --keep-all."""
    return True
