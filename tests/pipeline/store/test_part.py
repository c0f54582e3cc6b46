"""What ten thousand parts share in memory."""

from __future__ import annotations

import pickle
import sys

from pipeline.records import Scalar
from pipeline.store.part import SharedFacts


def test_facts_of_parts_share_their_names_and_are_equal_to_a_dictionary_s() -> None:
    facts: dict[str, Scalar] = {"mpp_y_um": 0.25, "decoder": "".join(["jp", "eg"]), "site": "north"}
    one, other = SharedFacts(facts), SharedFacts({**facts, "decoder": "".join(["jpe", "g"])})
    assert one == facts
    assert list(one) == list(facts)
    assert one["decoder"] is other["decoder"]
    assert next(iter(one)) is next(iter(other))
    assert pickle.loads(pickle.dumps(one)) == one  # noqa: S301 -- our own
    assert {**one, "site": "south"} == {**facts, "site": "south"}
    assert one.get("absent") is None
    assert repr(one) == repr(facts)
    assert sys.getsizeof(one._values) < sys.getsizeof(facts)
