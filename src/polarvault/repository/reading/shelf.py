"""The backups of one cluster in a repository, by the words that users type. A `backupset.backup.Shelf`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from polarvault.backupset.backup import Concerned
from polarvault.config.model import RepositoryConfiguration
from polarvault.errors import IntegrityError, ObjectDamaged, PolarvaultError, UsageError
from polarvault.repository.catalogue.opening import OpenedRepository
from polarvault.repository.format.chunks import ChunkRef
from polarvault.repository.format.record import RecordFacts
from polarvault.repository.reading.as_backup import BackupInRepository
from polarvault.repository.reading.rescue import Rescue
from polarvault.repository.reading.uses import backups_with
from polarvault.repository.reading.wal_stretch import is_held, read_history
from polarvault.repository.states.drills import DrillLog
from polarvault.repository.states.speeds import RestoreSpeeds
from polarvault.repository.wal.opened import wal_source
from polarvault.repository.wal.source import RepositoryWalSource


class RepositoryShelf:
    """Finds ``shop@LABEL``, ``shop@latest``, ``shop@20261125``; ``shop`` alone stands for all of its backups.

    config: the file that names the repository, which a restored server has to find it by. others: repositories of the
    same file from which WAL is taken that is missing or damaged in this one.
    """

    def __init__(
        self,
        opened: OpenedRepository,
        chosen: RepositoryConfiguration,
        cluster: str,
        *,
        config: str | None,
        others: Sequence[tuple[OpenedRepository, RepositoryConfiguration]] = (),
    ) -> None:
        self._opened, self._chosen, self._config, self._others = opened, chosen, config, others
        self.cluster = cluster
        self._found: dict[str, BackupInRepository] = {}
        self._archives: dict[int, RepositoryWalSource] = {}

    @property
    def drill_log(self) -> DrillLog:
        """Where it is written how drills of its backups ended."""
        return DrillLog(self._opened.repository, self.cluster)

    def whole_word(self, label: str | None) -> str:
        """Return the word with the whole label of what a user means; None: the last backup."""
        return f"{self.cluster}@{self._opened.repository.find_label(self.cluster, label or 'latest')}"

    def find(
        self, word: str, *, shared_from: str | None = None, force: bool = False, local_only: bool = False
    ) -> BackupInRepository:
        """Return a backup by its whole word; it is read once."""
        if shared_from is not None:
            raise UsageError("a backup in a repository has both halves", hint="leave --shared-from out")
        if word not in self._found:
            reader = self._opened.repository.open_backup(self.cluster, word.partition("@")[2])
            identifier = reader.record.facts.system_identifier
            self._found[word] = BackupInRepository(
                reader, self._archive(identifier), name=word, page_key=self._opened.repository.page_key,
                other_archives=self._other_archives(identifier),
                speed_log=RestoreSpeeds(self._opened.repository, self.cluster),
                rescue=Rescue(self._opened.repository, self.cluster, reader, self._archive(identifier)),
            )  # fmt: skip
        return self._found[word]

    def several(self, word: str) -> Sequence[str]:
        """Return all backups of the cluster for its bare name."""
        if word != self.cluster:
            return ()
        return [f"{self.cluster}@{label}" for label in self._opened.repository.living_labels(self.cluster)]

    def concerned(self, problem: IntegrityError, word: str) -> Concerned | None:
        """Look into the indexes of the other backups for a chunk that is damaged; WAL is of all of them."""
        if not isinstance(problem, ObjectDamaged) or not isinstance(problem.chunk, ChunkRef):
            return None
        repository, label = self._opened.repository, word.partition("@")[2]
        lost = backups_with(repository, self.cluster, {problem.chunk}, but=label)
        records = []
        for living in repository.living_labels(self.cluster):
            # One whose record is damaged as well is none to name.
            with suppress(PolarvaultError):
                records.append(repository.record(self.cluster, living))
        records.sort(key=lambda one: one.facts.start_lsn, reverse=True)
        own = next((one.facts for one in records if one.label == label), None)
        # By LSN: labels are a clock's, and of two in one second the order is chance.
        older = [
            one.label for one in records
            if own is not None and one.facts.system_identifier == own.system_identifier
            and one.facts.start_lsn < own.start_lsn
        ]  # fmt: skip
        spared = [one for one in older if one not in lost]
        leading = next(
            (one for one in records if own is not None and one.label in spared and self._leads(one.facts, own)), None
        )
        return Concerned(
            [f"{self.cluster}@{one.label}" for one in records if one.label in lost],
            [f"{self.cluster}@{one}" for one in spared],
            None if leading is None or own is None else f"{self.cluster}@{leading.label} --target-lsn {own.stop_lsn}",
        )

    def _leads(self, older: RecordFacts, own: RecordFacts) -> bool:
        """Tell whether all WAL from an older backup to the end of another one is there, on its history."""
        archive = self._archive(own.system_identifier)
        try:
            history = read_history(archive, own.stop_timeline_id)
            return history.contains_up_to(older.stop_timeline_id, older.stop_lsn) and is_held(
                archive, history, older.start_lsn, own.stop_lsn
            )
        except PolarvaultError:
            return False

    def _archive(self, system_identifier: int) -> RepositoryWalSource:
        if system_identifier not in self._archives:
            others = [chosen for opened, chosen in self._others if self._has(opened, system_identifier)]
            self._archives[system_identifier] = wal_source(
                self._opened, self._chosen, self.cluster, system_identifier=system_identifier, config=self._config,
                others=others,
            )  # fmt: skip
        return self._archives[system_identifier]

    def _other_archives(self, system_identifier: int) -> list[RepositoryWalSource]:
        return [
            wal_source(opened, chosen, self.cluster, system_identifier=system_identifier, config=self._config)
            for opened, chosen in self._others
            if self._has(opened, system_identifier)
        ]

    def _has(self, opened: OpenedRepository, system_identifier: int) -> bool:
        """Tell whether anything of the cluster came there under this system identifier; a fetch would find nothing."""
        return system_identifier in opened.repository.generations(self.cluster)
