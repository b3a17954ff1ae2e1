"""What a JVM loads, it leaves for those after it; what cannot be used changes nothing but the time it takes."""

import subprocess
import zipfile
from pathlib import Path

import pytest

from headwater.runtime import classes
from headwater.runtime.jars import kafka_classpath
from headwater.runtime.java import find_java


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if not classes.make_base(find_java()):
        pytest.skip("this machine's Java has no archive of its own classes, and its folder cannot be written")
    monkeypatch.setattr(classes, "kept_folder", lambda: tmp_path)
    return tmp_path


def shared(class_path: str = "") -> int:
    """Run a JVM that does little; how many classes it took from the archive of one before it."""
    command = [find_java().binary, *classes.flags("small"), "-Xlog:class+load", "-cp", class_path or kafka_classpath()]
    done = subprocess.run(
        [*command, "kafka.tools.StorageTool", "random-uuid"], capture_output=True, text=True, check=True, timeout=60
    )
    assert "warning" not in done.stdout + done.stderr
    return done.stdout.count("source: shared objects file (top)")


def test_the_first_jvm_leaves_an_archive_and_the_next_maps_it(kept: Path) -> None:
    assert classes.is_wanted("small")
    assert shared() == 0
    assert not classes.is_wanted("small")
    assert shared() > 500
    assert classes.is_wanted("another")


def test_an_archive_that_was_cut_short_is_made_anew(kept: Path) -> None:
    shared()
    (archive,) = (kept / "classes").iterdir()
    archive.chmod(0o600)
    archive.write_bytes(bytes(4096) + archive.read_bytes()[4096:9999])
    assert classes.is_wanted("small")
    assert shared() == 0
    assert shared() > 500


def test_an_archive_of_other_jars_is_not_used(kept: Path, tmp_path: Path) -> None:
    shared()
    with zipfile.ZipFile(tmp_path / "other.jar", "w") as other:
        other.writestr("other", "")
    assert shared(f"{tmp_path / 'other.jar'}:{kafka_classpath()}") == 0


def test_where_nothing_can_be_written_a_jvm_starts_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classes.os, "access", lambda *_: False)
    assert classes.kept_folder() is None
    assert classes.flags("small") == []
    assert not classes.is_wanted("small")
