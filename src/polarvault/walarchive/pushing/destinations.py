"""The repositories of a cluster, opened when the first file is pushed; archived is what is durable in each of them."""

from __future__ import annotations

import os
import threading

from polarvault.errors import PolarvaultError
from polarvault.storage.objects.address import Scheme, parse_address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from polarvault.config.model import RepositoryConfiguration
    from polarvault.repository.catalogue.opening import OpenedRepository
    from polarvault.walarchive.push import Pusher

_IDENTITY = "polarvault.json"


class Destinations:
    """Pushes into every repository; may be used by several threads."""

    def __init__(
        self,
        chosen: Sequence[RepositoryConfiguration],
        cluster: str,
        environment: Mapping[str, str],
        *,
        configuration: str | None,
    ) -> None:
        self._chosen, self.cluster, self._environment = tuple(chosen), cluster, environment
        # What is relative means what it means here, also when a process that pushes ahead has gone elsewhere.
        self._server_directory = os.getcwd()
        addresses = [parse_address(one.address) for one in self._chosen]
        local = [os.path.join(one.place, _IDENTITY) for one in addresses if one.scheme is Scheme.FILE]
        told_by = [*local, *([] if configuration is None else [configuration])]
        self._places = tuple(map(os.path.abspath, told_by))
        self._lock = threading.Lock()
        self._opened: list[OpenedRepository] = []
        self._pushers: list[Pusher] = []
        self._failed: PolarvaultError | None = None

    def open(self) -> None:
        """Open the repositories; raise what the first push would raise, as it will again."""
        self._opened_pushers()

    def push(self, path: str) -> int:
        """Push a file; return how many bytes were new, in all repositories together."""
        return sum(pusher.push(path) for pusher in self._opened_pushers())

    def places(self) -> Sequence[str]:
        """Return the files that say which repositories these are; while they stay the same, so do they."""
        return self._places

    def close(self) -> None:
        """Close what was opened."""
        for one in self._opened:
            one.close()

    def _opened_pushers(self) -> Sequence[Pusher]:
        from polarvault.repository.catalogue.opening import open_repository
        from polarvault.walarchive.push import Pusher

        with self._lock:
            # One that is away is waited for once, not by each thread in turn.
            if self._failed is not None:
                raise self._failed
            try:
                for one in self._chosen[len(self._pushers) :]:
                    opened = open_repository(one, self._environment)
                    self._opened.append(opened)
                    self._pushers.append(
                        Pusher(opened.repository, self.cluster, server_directory=self._server_directory)
                    )
            except PolarvaultError as problem:
                self._failed = problem
                raise
            return self._pushers
