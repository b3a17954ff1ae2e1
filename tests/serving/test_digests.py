"""Files are read once a minute by the processes that share a folder, and again where they are not what they were."""

import json
import os
import time
from hashlib import sha256
from pathlib import Path

import pytest

from models.bundle import sha256_of
from serving import digests
from serving.digests import FILE, KEPT_S, SharedDigests

TICK_S = 0.02
"""More than a file system's clock takes for one."""


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read."""
    found: list[Path] = []

    def counted(path: Path) -> str:
        found.append(path)
        return sha256_of(path)

    monkeypatch.setattr(digests, "sha256_of", counted)
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "index.faiss"
    path.write_bytes(b"one")
    return path


def test_a_second_process_takes_the_words_of_the_first(tmp_path: Path, file: Path, read: list[Path]) -> None:
    first, second = (SharedDigests(tmp_path / "run") for _ in range(2))
    assert first(file) == second(file) == sha256(b"one").hexdigest()
    assert read == [file]


@pytest.mark.parametrize("how", ["in place", "exchanged", "with its times set back"])
def test_a_file_that_was_written_since_is_read_again(tmp_path: Path, file: Path, read: list[Path], how: str) -> None:
    digest_of = SharedDigests(tmp_path / "run")
    digest_of(file)
    before = file.stat()
    time.sleep(TICK_S)
    target = file.with_name("draft") if how == "exchanged" else file
    target.write_bytes(b"two")
    target.replace(file)
    if how == "with its times set back":
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert digest_of(file) == sha256(b"two").hexdigest()
    assert read == [file, file]


def test_a_word_is_taken_for_a_minute(tmp_path: Path, file: Path, read: list[Path]) -> None:
    now_s = 1_000.0
    digest_of = SharedDigests(tmp_path / "run", lambda: now_s)
    digest_of(file)
    now_s += KEPT_S - 1
    digest_of(file)
    assert read == [file]
    now_s += 1
    digest_of(file)
    assert read == [file, file]
    assert list(json.loads((tmp_path / "run" / FILE).read_text())) == [str(file)]


def test_what_is_no_word_is_written_anew(tmp_path: Path, file: Path, read: list[Path]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / FILE).write_text("{")
    assert SharedDigests(run)(file) == SharedDigests(run)(file)
    assert read == [file]
