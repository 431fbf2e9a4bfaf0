"""Whose rights a thread has."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from polarvault.instance.account import server_account
from polarvault.storage.identity import thread_working_as

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can take another user's identity")


def test_one_thread_takes_an_identity_and_the_others_keep_theirs(tmp_path: Path) -> None:
    account = server_account()
    inside, looked = threading.Event(), threading.Event()
    seen: list[int] = []

    def work() -> None:
        with thread_working_as(account.uid):
            seen.append(os.geteuid())
            inside.set()
            assert looked.wait(60)
        seen.append(os.geteuid())

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(60)
    (tmp_path / "ours").touch()
    owner = (tmp_path / "ours").stat().st_uid
    looked.set()
    thread.join()
    assert (owner, seen) == (0, [account.uid, 0])


def test_the_identity_is_put_back_after_a_failure(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with pytest.raises(PermissionError), thread_working_as(server_account().uid):
        os.listdir(tmp_path)
    assert os.geteuid() == 0
