"""Items that come on topic ``items`` while the server answers."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support import bundles

from headwater.announced import read_item
from headwater.plan import DAY_MS
from models.bundle import Bundle, load_bundle
from serving import arrivals as following
from serving.arrivals import Arrivals

NOW = 400 * DAY_MS


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Its training ended at 1,000."""
    bundles.write(tmp_path / "v1")
    return load_bundle(tmp_path / "v1")


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[Arrivals]:
    """One that follows nothing, and takes up at once."""
    monkeypatch.setattr(following, "QUIET_S", 0.0)
    monkeypatch.setattr(Arrivals, "_follow", lambda *_: None)
    yield (arrivals := Arrivals("nowhere:1"))
    arrivals.close()


def told(item: str, **attributes: object) -> bytes:
    return json.dumps({"item_id": item, **attributes}).encode()


def test_what_came_after_a_training_is_added_once_and_what_is_taken_back_is_gone(
    quiet: Arrivals, bundle: Bundle
) -> None:
    assert quiet.added_to(bundle) is bundle
    quiet.take(b"b", told("b", name="Bean", price=3), 1_000)
    quiet.take(b"a", told("a", name="Ale", brand=None), 1_001)
    quiet.take(b"old", told("old", name="Known to its catalogue"), 999)
    assert quiet.version() == 1
    found = quiet.added_to(bundle)
    assert [*found.items.ids][len(bundle.items) :] == ["a", "b"]
    assert found.items.attributes(np.array([len(bundle.items)]))[0]["name"] == "Ale"
    quiet.take(b"a", told("a", name="Ale"), 1_002)
    assert quiet.version() == 1  # nothing is other than it was
    quiet.take(b"a", None, 1_003)
    quiet.take(b"never", None, 1_003)
    assert quiet.version() == 2
    assert [*quiet.added_to(bundle).items.ids][len(bundle.items) :] == ["b"]


def test_items_that_come_together_are_taken_up_together_and_a_bundle_is_left_for_as_long_as_it_took(
    quiet: Arrivals, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(following.time, "monotonic", lambda: now)
    monkeypatch.setattr(following, "QUIET_S", 0.3)
    quiet.take(b"a", told("a"), 1_000)
    assert quiet.version() == 0
    now = 100.2
    quiet.take(b"b", told("b"), 1_000)
    now = 100.4
    assert quiet.version() == 0
    now = 100.5
    assert quiet.version() == 1
    for at in range(30):  # without a pause
        now = 101.0 + at / 10
        quiet.take(b"c", told(f"c{at}"), 1_000)
    assert quiet.version() == 2
    quiet.took(4.0)
    quiet.take(b"d", told("d"), 1_000)
    now += 3.9
    assert quiet.version() == 2
    now += 0.2
    assert quiet.version() == 3


def test_a_record_that_is_no_item_is_left_and_an_item_that_cannot_be_placed_keeps_no_bundle_away(
    quiet: Arrivals, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in (b"{", b"[]", b'{"item_id": 3}', b'{"item_id": ""}', b'{"name": "x"}', b"\xff"):
        quiet.take(b"key", value, 1_000)
    quiet.take(None, None, 1_000)
    assert quiet.version() == 0
    quiet.take(b"a", told("a"), 1_000)
    monkeypatch.setattr(following, "with_items", lambda *_: 1 / 0)
    assert quiet.added_to(bundle) is bundle
    assert read_item(b"a", told("a", size=2)) == ("a", {"size": "2"})
