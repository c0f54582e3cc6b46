"""A period: its first moment is in, its last is not, and no zone means UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from pipeline.errors import SettingsError
from pipeline.sources.modified_range import ALWAYS, ModifiedRange

EAST = timezone(timedelta(hours=9))
JANUARY = ModifiedRange.of(datetime(2026, 1, 1), datetime(2026, 2, 1))
INSTANT = timedelta(microseconds=1)


def test_since_is_in_and_until_is_out() -> None:
    first, after = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)
    assert JANUARY.covers(first)
    assert not JANUARY.covers(first - INSTANT)
    assert JANUARY.covers(after - INSTANT)
    assert not JANUARY.covers(after)
    assert JANUARY.covers(datetime(2026, 2, 1, 8, 59, tzinfo=EAST))
    assert not JANUARY.covers(datetime(2026, 2, 1, 9, 0, tzinfo=EAST))


def test_an_open_end_has_no_bound_and_none_at_all_takes_everything() -> None:
    since = ModifiedRange.of(datetime(2026, 1, 1, 9, tzinfo=EAST), None)
    assert since.covers(datetime(9999, 1, 1, tzinfo=UTC))
    assert since.to_facts() == {"since": "2026-01-01T00:00:00+00:00"}
    assert ModifiedRange.of(None, None) == ALWAYS
    assert (ALWAYS.is_bounded, ALWAYS.notes, ALWAYS.to_facts()) == (False, (), {})


@pytest.mark.parametrize("until", [datetime(2026, 1, 1, tzinfo=UTC), datetime(2025, 1, 1, 9, 30)])
def test_what_ends_before_it_begins_is_refused(until: datetime) -> None:
    with pytest.raises(SettingsError, match="since: 2026-01-01 is not before until, 202"):
        ModifiedRange.of(datetime(2026, 1, 1, tzinfo=UTC), until)


@pytest.mark.parametrize("moment", [datetime.max, datetime.min])
def test_a_time_beyond_the_calendar_is_refused(moment: datetime) -> None:
    zone = timezone(timedelta(hours=-9 if moment == datetime.max else 9))
    for ends in ((moment.replace(tzinfo=zone), None), (None, moment.replace(tzinfo=zone))):
        with pytest.raises(SettingsError, match=r"is beyond the calendar in UTC\. Give a time"):
            ModifiedRange.of(*ends)


def test_what_is_left_out_is_said() -> None:
    (entry,) = JANUARY.leave_out(12)
    assert entry.reason == (
        "12 left out: only what was last modified since 2026-01-01 and before 2026-02-01 is taken"
    )
    assert JANUARY.leave_out(0) == ()
    assert (
        "last modified before 2026-02-01T12:30:00Z;"
        in (ModifiedRange.of(None, datetime(2026, 2, 1, 12, 30, tzinfo=UTC)).notes[0])
    )
