"""`restore -`: one tar from a pipe. It is unpacked inside of the target as it comes, then planned and moved into place.

What decides about a restore lies anywhere in a tar, and a pipe is read once. So nothing can be refused before the tar
has been received, except what the target tells; whatever is refused then, the target is as it was before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import BinaryIO

from polarvault.errors import Interrupted, PolarvaultError, UsageError
from polarvault.instance.account import working_as_account
from polarvault.instance.host import Host, existing_ancestor
from polarvault.instance.model import Account
from polarvault.restore.model import Layout, RestoreRequest
from polarvault.restore.plan.gather import look_at_places
from polarvault.restore.plan.places import check_targets
from polarvault.restore.plan.roles import rules_of
from polarvault.restore.write.staging import Progress, named_standard_input, staging_of, unpack_stream
from polarvault.restore.write.targets import Targets


@dataclass(frozen=True, slots=True)
class Received:
    """What was unpacked: the request to go on with, and the targets that have been claimed for it."""

    request: RestoreRequest
    targets: Targets


@contextmanager
def receive(request: RestoreRequest, host: Host, stream: BinaryIO, progress: Progress) -> Iterator[Received]:
    """Unpack a tar from a pipe; on failure or interruption inside of the block everything made is removed again."""
    rules = rules_of(request.role)
    if rules.takes_local_half_only:
        raise UsageError(
            "a replica is made of a local half, not of a tar from a pipe", hint="name its directory or tar"
        )
    rules.check_request(request)
    layout = Layout(request.target, None, {})
    check_targets(layout, look_at_places(layout, host), ())
    account = host.account(request.owner, existing_ancestor(request.target))
    targets = Targets(account, directory_mode=0o700, sync=request.sync)
    staging = staging_of(request.target)
    try:
        targets.claim([request.target])
        _unpack(stream, staging, account, progress)
        yield Received(replace(request, backup=staging, owner=request.owner or account.name), targets)
    except KeyboardInterrupt:
        targets.undo()
        raise Interrupted("interrupted; what was received so far has been removed") from None
    except PolarvaultError as problem:
        targets.undo()
        named_standard_input(problem, staging)
        raise
    except BaseException:
        targets.undo()
        raise


def _unpack(stream: BinaryIO, staging: str, account: Account, progress: Progress) -> None:
    with working_as_account(account):
        unpack_stream(stream, staging, progress)
