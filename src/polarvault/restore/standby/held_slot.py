"""--create-slot: the slot on the primary, made before a file is copied so that WAL is held from then on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from polarvault.errors import PolarvaultError, ServerError, ServerRefused
from polarvault.restore.model import RestorePlan
from polarvault.wire.commands import create_physical_slot_command, quote_identifier

_TOO_MANY_SLOTS = "53400"


@contextmanager
def held_slot(plan: RestorePlan) -> Iterator[None]:
    """Make the slot that the plan asks for; when the body fails it is dropped again, so that it holds no WAL."""
    name, primary = plan.request.slot, plan.primary
    if not plan.request.create_slot or name is None or primary is None:
        yield
        return
    _run(plan, create_physical_slot_command(name, primary.identity.version_num))
    try:
        yield
    except BaseException as failure:
        try:
            _run(plan, f"DROP_REPLICATION_SLOT {quote_identifier(name)}")
        except PolarvaultError as problem:
            if isinstance(failure, PolarvaultError):
                left = f'slot "{name}" stays on the primary and holds WAL there ({problem.message}); drop it: '
                left += f"SELECT pg_drop_replication_slot('{name}')"
                failure.detail = f"{failure.detail}\n{left}" if failure.detail else left
        raise


def _run(plan: RestorePlan, command: str) -> None:
    from polarvault.restore.standby.primary import connector_to

    assert plan.primary is not None
    connection = connector_to(plan.primary.conninfo).replication()
    try:
        connection.query(command)
    except ServerError as problem:
        hint = problem.hint
        if problem.sqlstate == _TOO_MANY_SLOTS:
            hint = (
                "drop one (SELECT * FROM pg_replication_slots), or raise max_replication_slots and restart the primary"
            )
        raise ServerRefused(f'slot "{plan.request.slot}": {problem.message}', hint=hint) from problem
    finally:
        connection.close()
