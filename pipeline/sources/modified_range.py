"""A span of time, by which scans are taken or left."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from pipeline.errors import SettingsError
from pipeline.records import ManifestEntry


@dataclass(frozen=True, slots=True)
class ModifiedRange:
    """From one time to another, either of them open.

    Args:
        since: First moment of it, in UTC; None for the beginning of time.
        until: First moment after it, in UTC; None for its end.
    """

    since: datetime | None = None
    until: datetime | None = None

    @classmethod
    def of(cls, since: datetime | None, until: datetime | None) -> ModifiedRange:
        """Take it as a person gives it: UTC where no zone is.

        Raises:
            SettingsError: It ends before or when it begins.
        """
        period = cls(_to_utc(since), _to_utc(until))
        if period.since and period.until and period.since >= period.until:
            problem = f"{_say(period.since)} is not before until, {_say(period.until)}"
            raise SettingsError("since", problem, "`until` is the first moment not to be taken")
        return period

    @property
    def is_bounded(self) -> bool:
        """Whether any moment lies outside."""
        return self != ALWAYS

    @property
    def notes(self) -> tuple[str, ...]:
        """What whoever reads results of this period alone must know first."""
        said = f"Only scans last modified {self}; the manifest says how many others there are."
        return (said,) if self.is_bounded else ()

    def covers(self, moment: datetime) -> bool:
        """Whether a moment, with a time zone, lies within."""
        is_late = self.since is None or moment >= self.since
        return is_late and (self.until is None or moment < self.until)

    def leave_out(self, count: int) -> tuple[ManifestEntry, ...]:
        """What a manifest says of so many files that were modified at another time."""
        if not count:
            return ()
        reason = f"{count} left out: only what was last modified {self} is taken"
        return (ManifestEntry("period", "skipped", reason),)

    def to_facts(self) -> dict[str, str]:
        """Its bounds as a record keeps them, ISO 8601; none of an open one."""
        bounds = {"since": self.since, "until": self.until}
        return {name: bound.isoformat() for name, bound in bounds.items() if bound}

    def __str__(self) -> str:
        bounds = (("since", self.since), ("before", self.until))
        return " and ".join(f"{word} {_say(bound)}" for word, bound in bounds if bound)


ALWAYS: Final = ModifiedRange()


def _to_utc(moment: datetime | None) -> datetime | None:
    if moment is None:
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _say(moment: datetime) -> str:
    return moment.isoformat().removesuffix("T00:00:00+00:00").replace("+00:00", "Z")
