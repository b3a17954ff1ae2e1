"""Beam's servers on the address that they are given: the class of the Flink that is installed, and others."""

import zipfile
from pathlib import Path

import pytest

from headwater.errors import ResourceError
from streaming import cluster, loopback


@pytest.fixture(scope="module")
def beams() -> bytes:
    (jar,) = (cluster.pyflink_home() / "opt").glob("flink-python*.jar")
    with zipfile.ZipFile(jar) as held:
        return held.read(loopback.CLASS)


def test_one_call_is_another_and_all_else_is_as_it_was(beams: bytes) -> None:
    ours = loopback.on_its_address(beams, "flink-python.jar")
    more = len(ours) - len(beams)
    end = next(at for at in range(10, len(beams)) if ours[at] != beams[at])
    assert b"forAddress" in ours[end : end + more]
    assert b"forAddress" not in beams
    left, right = beams[end:], ours[end + more :]
    changed = [at for at in range(len(left)) if left[at] != right[at]]
    assert changed[-1] - changed[0] < len(b"\xb6..\xb8..")
    assert right[changed[0] : changed[0] + 4] == b"\0\0\0\xb8"


@pytest.mark.parametrize("other", ["its own output", "another name"])
def test_a_class_without_that_call_is_refused_by_the_jars_name(beams: bytes, other: str) -> None:
    code = loopback.on_its_address(beams, "") if other == "its own output" else beams.replace(b"forPort", b"forPart")
    with pytest.raises(ResourceError, match=r"flink-python\.jar: its .* Install the versions of requirements\.lock"):
        loopback.on_its_address(code, "flink-python.jar")


def test_the_library_is_flinks_and_one_jar_and_a_second_time_the_same(tmp_path: Path) -> None:
    for _ in range(2):
        made = loopback.library(cluster.pyflink_home(), tmp_path / "lib")
        jars = {jar.name for jar in (cluster.pyflink_home() / "lib").glob("*.jar")}
        assert {jar.name for jar in made.iterdir()} - jars == {"headwater-loopback.jar"}
        assert jars <= {jar.name for jar in made.iterdir()}
        assert all(jar.is_file() for jar in made.iterdir())
