"""Jars run only if they are the ones listed."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from headwater.errors import ResourceError
from headwater.runtime import jars

COORDINATE = "org.example:thing:1.0"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    jars.cache_dir().mkdir(parents=True)
    return jars.cache_dir()


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "lock.json"
    path.write_text(json.dumps({"kafka": {COORDINATE: hashlib.sha256(b"the thing").hexdigest()}}))
    return path


def fetch_gives(monkeypatch: pytest.MonkeyPatch, content: bytes | None) -> list[tuple[str, ...]]:
    """Put ``content`` in the repository's place; return what is asked of it."""
    asked = []

    def ivy(scratch: Path, roots: dict[str, tuple[str, ...]], transitive: frozenset[str]) -> dict[str, dict[str, Path]]:
        asked.append(roots["jars"])
        if content is None:
            return {"jars": {}}
        (scratch / "thing.jar").write_bytes(content)
        return {"jars": {COORDINATE: scratch / "thing.jar"}}

    monkeypatch.setattr(jars, "_ivy", ivy)
    return asked


def test_a_jar_that_differs_from_the_list_is_refused_and_not_kept(
    cache: Path, lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch_gives(monkeypatch, b"another thing")
    with pytest.raises(ResourceError, match=rf"{COORDINATE}: the jar fetched has sha256 .* lists .* is not used"):
        jars.ensure_jars(lock)
    assert not jars.cached(COORDINATE).exists()
    assert [path.name for path in cache.iterdir()] == [".lock"]


def test_a_listed_jar_is_fetched_once_and_again_if_it_was_altered(
    cache: Path, lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = fetch_gives(monkeypatch, b"the thing")
    assert jars.ensure_jars(lock) == {"kafka": [jars.cached(COORDINATE)]}
    jars.ensure_jars(lock)
    assert asked == [(COORDINATE,)]
    jars.cached(COORDINATE).write_bytes(b"torn")
    jars.ensure_jars(lock)
    assert len(asked) == 2
    assert jars.cached(COORDINATE).read_bytes() == b"the thing"


def test_a_jar_that_the_repository_lacks_is_told_by_name(
    cache: Path, lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch_gives(monkeypatch, None)
    with pytest.raises(ResourceError, match=f"{COORDINATE}: the Maven repository does not have this jar"):
        jars.ensure_jars(lock)


def test_without_network_and_without_cache_one_sentence_is_told(tmp_path: Path) -> None:
    """The real Ivy, pointed by the user's Maven settings at a mirror where nobody listens."""
    mirror = "<mirror><mirrorOf>central</mirrorOf><url>http://127.0.0.1:9/repository</url></mirror>"
    (tmp_path / ".m2").mkdir()
    (tmp_path / ".m2" / "settings.xml").write_text(f"<settings><mirrors>{mirror}</mirrors></settings>")
    run = subprocess.run(
        [sys.executable, "-m", "headwater.runtime.jars"],
        env={**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 1
    assert run.stderr.startswith("jars: not fetched, ")
    assert run.stderr.count("\n") == 1


def test_the_committed_list_has_a_digest_for_every_root() -> None:
    lock = json.loads(jars.LOCK_PATH.read_text())
    for group, roots in jars.ROOTS.items():
        assert set(roots) <= set(lock[group])
    assert all(len(digest) == 64 for group in lock.values() for digest in group.values())


def test_flink_reads_what_producers_may_have_compressed() -> None:
    listed = json.loads(jars.LOCK_PATH.read_text())["kafka"]
    codecs = [name for name in listed if name.replace(":", "__").startswith(jars.CODECS)]
    assert sorted(name.split(":")[1] for name in codecs) == ["lz4-java", "snappy-java", "zstd-jni"]
