"""What came later of a backup, and the list of all backups."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta

from polarvault.report.repository.catalogue import listed_json, listed_text
from polarvault.repository.catalogue.listing import Catalogue
from polarvault.repository.catalogue.repository import Generation
from polarvault.repository.states.speeds import RestoreSpeeds
from polarvault.repository.states.states import (
    CLUSTER,
    DAMAGED,
    NOTE,
    PIN,
    TOMBSTONE,
    UNPIN,
    VERIFIED,
    Standing,
    StateName,
    States,
    standings,
)
from support.repositories import NOW, back_up, facts, new_repository, reopened, two_trees

SYSTEM = facts().system_identifier
GENERATION = Generation(SYSTEM, 180000, False, 16 << 20, 1 << 30, True)


def test_states_are_numbered_in_the_order_in_which_they_come_and_read_back() -> None:
    for encrypted in (False, True):
        repository = new_repository(encrypted=encrypted)
        label = back_up(repository, two_trees()[0]).label
        states = States(repository, "shop")
        for kind, text in ((PIN, ""), (NOTE, "first"), (UNPIN, ""), (NOTE, "second"), (VERIFIED, "")):
            states.add(label, kind, now=NOW, text=text, finding={"chunks": 3})
        states.add(CLUSTER, NOTE, now=NOW)
        again = States(reopened(repository), "shop") if encrypted else states
        names = again.listed(label)
        assert [(one.number, one.kind) for one in names] == [
            (0, PIN), (1, NOTE), (2, UNPIN), (3, NOTE), (4, VERIFIED)
        ]  # fmt: skip
        standing = standings(again.listed())[label]
        assert (standing.pinned, standing.is_damaged, standing.expired) == (False, False, False)
        assert standing.note is not None
        read = again.read(standing.note)
        assert read is not None
        assert (read.text, read.time, dict(read.finding)) == ("second", NOW, {"chunks": 3})


def test_what_states_come_to() -> None:
    def standing(*kinds: str) -> Standing:
        return standings(StateName("x", number, kind) for number, kind in enumerate(kinds))["x"]

    assert standing(PIN).pinned
    assert not standing(PIN, UNPIN).pinned
    assert standing(PIN, UNPIN, PIN).pinned
    assert standing(VERIFIED, DAMAGED).is_damaged
    assert not standing(DAMAGED, VERIFIED).is_damaged
    assert standing(TOMBSTONE).expired
    assert standing("of-the-future") == Standing()
    # Two writers that met at one number: what is kept once too often can still be removed.
    assert standings([StateName("x", 0, PIN), StateName("x", 0, UNPIN)])["x"].pinned


def test_two_writers_that_meet_get_two_numbers() -> None:
    repository = new_repository(encrypted=True)
    label = back_up(repository, two_trees()[0]).label
    states = States(repository, "shop")
    listed, raced = states.listed, []

    def race(subject: str | None = None) -> list[StateName]:
        found = listed(subject)
        if not raced:
            raced.append(1)
            # Between the look and the write of the one comes the whole write of the other.
            States(repository, "shop").add(label, PIN, now=NOW, text="faster")
        return found

    states.listed = race  # type: ignore[method-assign]
    states.add(label, UNPIN, now=NOW)
    names = States(repository, "shop").listed(label)
    assert names[0] == StateName(label, 0, PIN)
    assert names[-1].kind == UNPIN
    assert names[-1].number == 1
    assert not standings(names)[label].pinned


def test_the_list_says_how_good_backups_are_and_how_far_their_wal_leads() -> None:
    repository = new_repository()
    repository.ensure_generation("shop", GENERATION)
    first, second = two_trees()
    full = back_up(repository, first)
    part = back_up(repository, second, parent=full.label, minutes=10)
    catalogue = Catalogue(repository, "shop")
    assert [(one.label, one.state) for one in catalogue.backups()] == [
        (full.label, "incomplete"), (part.label, "incomplete")
    ]  # fmt: skip
    start, stop = facts().start_lsn, facts().stop_lsn
    wal = repository.wal("shop", SYSTEM, 16 << 20)
    for at in range(start - start % (16 << 20), stop + (16 << 20), 16 << 20):
        wal.put_range(1, at, bytes(16 << 20))
    catalogue.states.add(part.label, DAMAGED, now=NOW + timedelta(days=1))
    catalogue.states.add(full.label, PIN, now=NOW)
    one, two = Catalogue(repository, "shop").backups()
    assert (one.state, one.wal_end, one.standing.pinned) == ("good", stop + (16 << 20), True)
    assert (two.state, two.verified) == ("damaged", NOW + timedelta(days=1))
    text = "\n".join(listed_text("shop", [one, two]))
    assert "good, pinned" in text
    assert "incremental" in text
    document = listed_json("shop", "memory", [one, two])
    assert [backup["parent"] for backup in document["backups"]] == [None, full.label]
    assert document["backups"][0]["wal_end"] == str(one.wal_end)


def test_a_record_that_cannot_be_read_is_listed_and_said() -> None:
    repository = new_repository()
    repository.ensure_generation("shop", GENERATION)
    label = back_up(repository, two_trees()[0]).label
    name = f"clusters/shop/backups/{label}/record"
    content = bytearray(repository.store.get(name, most_bytes=1 << 20))
    content[100] ^= 1
    repository.store.delete(name)
    repository.store.put_new(name, [bytes(content)])
    [one] = Catalogue(repository, "shop").backups()
    assert (one.record, one.state) == (None, "damaged")
    assert one.problem in "\n".join(listed_text("shop", [one]))


def test_the_list_loads_nothing_that_takes_long() -> None:
    code = (
        "import sys; import polarvault.cli.commands.repository.list, polarvault.report.repository.catalogue, "
        "polarvault.repository.catalogue.listing, polarvault.repository.catalogue.opening; "
        "print([m for m in ('numpy', 'rich', 'obstore', 'psycopg', 'llvmlite', 'blake3') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_speeds_of_the_last_restores_are_kept_and_no_more() -> None:
    repository = new_repository()
    speeds = RestoreSpeeds(repository, "shop")
    assert speeds.last() == []
    speeds.note(1000, 0.1)
    assert speeds.last() == []
    for number in range(1, 9):
        speeds.note(number * 100_000_000, 2.0)
    assert speeds.last() == [number * 50_000_000 for number in range(4, 9)]
    assert len(list(repository.store.list_objects("clusters/shop/states"))) == 5
