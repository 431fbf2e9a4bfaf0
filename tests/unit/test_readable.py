"""Waiting for something to read, also in a process with very many open files."""

from __future__ import annotations

import fcntl
import os
import resource

import pytest

from polarvault.server.readable import wait_readable


def test_a_descriptor_beyond_those_of_select_is_waited_for() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft <= 2000:
        if hard != resource.RLIM_INFINITY and hard <= 2000:
            pytest.skip("this account may not have 2000 files open")
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096 if hard == resource.RLIM_INFINITY else min(hard, 4096), hard))
    reader, writer = os.pipe()
    high = fcntl.fcntl(reader, fcntl.F_DUPFD_CLOEXEC, 1500)
    try:
        assert high >= 1500
        assert not wait_readable(high, 0)
        os.write(writer, b"!")
        assert wait_readable(high)
    finally:
        for descriptor in (reader, writer, high):
            os.close(descriptor)


def test_an_end_can_be_read_and_a_closed_descriptor_cannot() -> None:
    reader, writer = os.pipe()
    os.close(writer)
    assert wait_readable(reader, 0)
    os.close(reader)
    with pytest.raises(OSError, match="Bad file descriptor"):
        wait_readable(reader, 0)
    with pytest.raises(ValueError, match="negative"):
        wait_readable(-1, 0)
