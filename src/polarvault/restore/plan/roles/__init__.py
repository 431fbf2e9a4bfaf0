"""What differs by what the restored server is to be: a primary, a standby, or a replica on live storage. Pure.

`rules` says which questions a role answers, and what most answer alike; there is a module for each role, and `storage`
for where the data are: in directories of its own, merged into one, or the primary's. Nobody else asks for the role.
"""

from __future__ import annotations

from polarvault.instance.model import Role
from polarvault.restore.plan.roles.primary import PrimaryRules
from polarvault.restore.plan.roles.replica import ReplicaRules
from polarvault.restore.plan.roles.rules import RoleRules
from polarvault.restore.plan.roles.standby import StandbyRules

__all__ = ["RoleRules", "rules_of"]

_RULES: dict[Role, RoleRules] = {
    Role.PRIMARY: PrimaryRules(),
    Role.STANDBY: StandbyRules(),
    Role.REPLICA: ReplicaRules(),
}


def rules_of(role: Role) -> RoleRules:
    """Return the rules of a role."""
    return _RULES[role]
