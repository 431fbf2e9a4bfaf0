"""The thread that judges small files and reads WAL while others read files."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from polarvault.model.finding import Finding
from polarvault.pgfiles.pages import load_kernel
from polarvault.verify.own_wal import OwnWal

if TYPE_CHECKING:
    from polarvault.verify.wal.check import WalVerdict


class BeyondThread:
    """Judges the small files and reads WAL while other threads read files, and compiles the page kernel for them first.

    All that is compiled is compiled here, one thing after the other (see `machine_code`).
    """

    def __init__(
        self, judge_facts: Callable[[], list[Finding]], wal: OwnWal, *, with_pages: bool, with_looks: bool = False
    ) -> None:
        self.kernel_loaded = threading.Event()
        self._judge_facts = judge_facts
        self._wal = wal
        self._with_pages = with_pages
        self._with_looks = with_looks
        self._stopped = False
        self._facts: list[Finding] = []
        self._verdict: WalVerdict | None = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="beyond", daemon=True)
        self._thread.start()

    @property
    def why_no_wal(self) -> str | None:
        """Why no WAL is read; None: it is."""
        return self._wal.why_not

    def results(self) -> tuple[list[Finding], WalVerdict | None]:
        """Wait for the end; return what the small files say, and the WAL."""
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return self._facts, self._verdict

    def stop(self) -> None:
        """End the thread; the program must not end while it compiles."""
        self._stopped = True
        self._thread.join()

    def _run(self) -> None:
        try:
            if self._with_pages:
                load_kernel()
            if self._with_looks:
                # Here: few backups have so many files.
                from polarvault.verify.files.looks import load_look

                load_look()
            self.kernel_loaded.set()
            self._facts = self._judge_facts()
            self._verdict = self._wal.check(lambda: self._stopped)
        except BaseException as failure:  # The main thread raises it again.
            self._failure = failure
        finally:
            # A reader that waits for the kernel loads it itself, and meets the same failure.
            self.kernel_loaded.set()
