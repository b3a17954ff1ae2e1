"""The pictures of the documents are those that the definition draws, and they show what they claim to."""

from pathlib import Path

import pytest

from benchmarks import pictures

ROOT = Path(__file__).parents[2]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pictures_are_drawn_from_the_definition(tmp_path: Path) -> None:
    written = pictures.write(tmp_path)
    folder = ROOT / "docs" / "pictures"
    measured = {"frontier.svg"}
    assert {path.name for path in written} | measured == {path.name for path in folder.iterdir()}
    for path in written:
        assert path.read_bytes() == (folder / path.name).read_bytes(), "python -m benchmarks.pictures docs/pictures"


def test_the_picture_of_two_clocks_shows_a_leak_and_where_it_ends() -> None:
    hours, as_known = pictures.values(known=True)
    _, as_of = pictures.values(known=False)
    differs = [hour for hour, left, right in zip(hours, as_known, as_of, strict=True) if left != right]
    ((happened, arrived),) = pictures.ARRIVED.items()
    assert happened < differs[0] <= differs[-1] <= arrived
    assert all(left <= right for left, right in zip(as_known, as_of, strict=True))
