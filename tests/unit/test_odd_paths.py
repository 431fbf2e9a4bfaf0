"""Paths that are no UTF-8: what a server's program prints comes back as it went out."""

from __future__ import annotations

import os
from pathlib import Path

from polarvault.instance.model import Account
from polarvault.instance.programs import run_program

ODD = os.fsdecode(b"/tar\xffget")


def test_a_path_that_is_no_text_survives_a_program(tmp_path: Path) -> None:
    account = Account("me", os.geteuid(), os.getegid())
    assert run_program(["/bin/echo", ODD], account).stdout == ODD + "\n"
