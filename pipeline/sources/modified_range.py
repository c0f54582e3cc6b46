"""Filter scans by the time of their last modification."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from pipeline.errors import SettingsError
from pipeline.records import ManifestEntry


@dataclass(frozen=True, slots=True)
class ModifiedRange:
    """Range of times of last modification; either end may be open.

    Args:
        since: First moment of the range, in UTC; None for no lower bound.
        until: First moment after the range, in UTC; None for no upper bound.
    """

    since: datetime | None = None
    until: datetime | None = None

    @classmethod
    def of(cls, since: datetime | None, until: datetime | None) -> ModifiedRange:
        """Make a range from times as a user gives them; without a zone they are UTC.

        Raises:
            SettingsError: `since` is not before `until`, or a time is beyond the calendar in UTC.
        """
        period = cls(_to_utc(since), _to_utc(until))
        if period.since and period.until and period.since >= period.until:
            problem = f"{_say(period.since)} is not before until, {_say(period.until)}"
            raise SettingsError("since", problem, "`until` is the first moment not to be taken")
        return period

    @property
    def is_bounded(self) -> bool:
        """Whether the range excludes any moment."""
        return self != ALWAYS

    @property
    def notes(self) -> tuple[str, ...]:
        """Remark for readers of results that cover this range alone."""
        said = f"Only scans last modified {self}; the manifest says how many others there are."
        return (said,) if self.is_bounded else ()

    def covers(self, moment: datetime) -> bool:
        """Whether a moment (with a time zone) is in the range."""
        is_late = self.since is None or moment >= self.since
        return is_late and (self.until is None or moment < self.until)

    def leave_out(self, count: int) -> tuple[ManifestEntry, ...]:
        """Make the manifest entry for files modified at another time."""
        if not count:
            return ()
        reason = f"{count} left out: only what was last modified {self} is taken"
        return (ManifestEntry("period", "skipped", reason),)

    def to_facts(self) -> dict[str, str]:
        """Format the bounds that are set, as ISO 8601."""
        bounds = {"since": self.since, "until": self.until}
        return {name: bound.isoformat() for name, bound in bounds.items() if bound}

    def __str__(self) -> str:
        bounds = (("since", self.since), ("before", self.until))
        return " and ".join(f"{word} {_say(bound)}" for word, bound in bounds if bound)


ALWAYS: Final = ModifiedRange()


def _to_utc(moment: datetime | None) -> datetime | None:
    if moment is None:
        return None
    try:
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError as error:
        problem = f"{moment.isoformat()} is beyond the calendar in UTC"
        raise SettingsError(
            "since, until", problem, "Give a time of the years 2 to 9998"
        ) from error


def _say(moment: datetime) -> str:
    return moment.isoformat().removesuffix("T00:00:00+00:00").replace("+00:00", "Z")
