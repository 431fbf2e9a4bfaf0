"""A directory in which a backup is being made says so."""

from datetime import UTC, datetime
from pathlib import Path

from polarvault.backupset.unfinished import MARKER_NAME, is_unfinished, marker_content, read_marker


def test_only_a_directory_with_the_mark_is_unfinished(tmp_path: Path) -> None:
    assert not is_unfinished(str(tmp_path))
    assert read_marker(str(tmp_path)) is None
    (tmp_path / MARKER_NAME).write_bytes(marker_content(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), 4711))
    assert is_unfinished(str(tmp_path))
    said = read_marker(str(tmp_path))
    assert said is not None
    assert "process 4711" in said
    assert "2026-01-02T03:04:05+00:00" in said
    assert "take another one" in said


def test_a_mark_that_cannot_be_read_is_a_mark_all_the_same(tmp_path: Path) -> None:
    (tmp_path / MARKER_NAME).symlink_to("/nowhere")
    assert is_unfinished(str(tmp_path))
    assert read_marker(str(tmp_path)) == ""
