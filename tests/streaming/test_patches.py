"""Classes of Flink's Python jar with a call made otherwise: those of the Flink that is installed, and others."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from support import clean_ups

from headwater.errors import ResourceError
from headwater.runtime.parts import environment
from headwater.settings import Settings
from streaming import cluster, job, patches

Patch = Callable[[bytes, str], bytes]


@pytest.fixture(scope="module")
def flinks() -> dict[Patch, bytes]:
    """The class that each patch is of, as Flink has it."""
    with zipfile.ZipFile(patches.python_jar(cluster.pyflink_home())) as held:
        return {patch: held.read(name) for name, patch in patches.PATCHES.items()}


def test_one_call_is_another_and_all_else_is_as_it_was(flinks: dict[Patch, bytes]) -> None:
    beams = flinks[patches.on_its_address]
    ours = patches.on_its_address(beams, "flink-python.jar")
    more = len(ours) - len(beams)
    end = next(at for at in range(10, len(beams)) if ours[at] != beams[at])
    assert b"forAddress" in ours[end : end + more]
    assert b"forAddress" not in beams
    left, right = beams[end:], ours[end + more :]
    changed = [at for at in range(len(left)) if left[at] != right[at]]
    assert changed[-1] - changed[0] < len(b"\xb6..\xb8..")
    assert right[changed[0] : changed[0] + 4] == b"\0\0\0\xb8"


@pytest.mark.parametrize("patch", patches.PATCHES.values())
@pytest.mark.parametrize("other", ["its own output", "another name"])
def test_a_class_without_that_call_is_refused_by_the_jars_name(
    flinks: dict[Patch, bytes], patch: Patch, other: str
) -> None:
    renamed = flinks[patch]
    for name, another in ((b"forPort", b"forPart"), (b"\0\x03end", b"\0\x03fin"), (b"checkState", b"checkSlate")):
        renamed = renamed.replace(name, another)
    code = patch(flinks[patch], "") if other == "its own output" else renamed
    with pytest.raises(ResourceError, match=r"flink-python\.jar: its .* Install the versions of requirements\.lock"):
        patch(code, "flink-python.jar")


@pytest.mark.integration
@pytest.mark.parametrize(
    ("patched", "closing", "releasing"),
    [(True, "nothing", "nothing"), (False, "ClosedChannelException", "IllegalStateException")],
)
def test_a_failed_job_is_cleaned_up_where_flinks_own_classes_fail(
    tmp_path: Path, patched: bool, closing: str, releasing: str
) -> None:
    """Where Flink itself does not fail, the patch can go."""
    settings = Settings(state_dir=tmp_path)
    told = {**os.environ, **environment(settings), **job.jvm_environment(settings)}
    if not patched:
        told["FLINK_LIB_DIR"] = str(cluster.pyflink_home() / "lib")
    said = subprocess.run(
        [sys.executable, clean_ups.__file__], env=told, capture_output=True, text=True, timeout=60, check=True
    )
    assert said.stdout.split() == ["ClosedByInterruptException", closing, releasing]


def test_the_library_is_flinks_with_its_planner_unpacked_and_one_jar_and_is_made_once(tmp_path: Path) -> None:
    made = patches.library(cluster.pyflink_home(), tmp_path)
    jars = {jar.name for jar in (cluster.pyflink_home() / "lib").glob("*.jar") if "planner-loader" not in jar.name}
    assert {jar.name for jar in made.iterdir()} == jars | {"headwater-flink.jar", patches.PLANNER}
    assert all(zipfile.is_zipfile(jar) for jar in made.iterdir())
    born = {jar.name: jar.stat().st_mtime_ns for jar in made.iterdir()}
    assert patches.library(cluster.pyflink_home(), tmp_path) == made
    assert {jar.name: jar.stat().st_mtime_ns for jar in made.iterdir()} == born
    assert list(tmp_path.iterdir()) == [made]
