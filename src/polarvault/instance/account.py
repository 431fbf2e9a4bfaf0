"""Work with the rights of the account that owns a restored server, and nobody else's."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager

from polarvault.instance.model import Account
from polarvault.storage.identity import working_as


def working_as_account(account: Account) -> AbstractContextManager[None]:
    """Give the process the account's identity and groups, if root runs it; no program may be started meanwhile."""
    return working_as(account.uid, account.gid, _groups(account))


def _groups(account: Account) -> list[int]:
    try:
        return os.getgrouplist(account.name, account.gid)
    except (KeyError, OSError):
        return [account.gid]
