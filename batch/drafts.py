"""A folder that appears whole or not at all, whatever moment its writer is killed at.

::

    .rows.k3f.draft/   locked by its writer as long as that lives; holds what is being made
    rows               what readers see; exchanged for the finished folder in one step

A lock ends with its process, so a draft that nobody holds was left by a killed run, and the next run removes it.
"""

import ctypes
import fcntl
import glob
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

REPLACED = "replaced"
_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)
_HERE = -100  # AT_FDCWD


@contextmanager
def draft_beside(out: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``out`` that is gone afterwards; drafts of killed runs go before."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with _locked(out.parent):  # nobody may take a draft for abandoned before its writer has locked it
        _remove_abandoned(out)
        draft = Path(tempfile.mkdtemp(".draft", f".{out.name}.", out.parent))
        held = _lock(draft)
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        os.close(held)


def put_in_place(made: Path, out: Path) -> None:
    """Make a finished folder of a draft ``out``; what was there stays readable until then, and goes with the draft.

    Where the system cannot exchange two names in one step, a run killed between two renames leaves the old folder in
    its draft, from which the next run brings it back.
    """
    if not out.exists():
        made.rename(out)
    elif not _exchanged(made, out):
        out.rename(made.parent / REPLACED)
        made.rename(out)


def _exchanged(left: Path, right: Path) -> bool:
    """Whether the two names were swapped."""
    if sys.platform != "linux":
        return False
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    return renameat2 is not None and renameat2(_HERE, os.fsencode(left), _HERE, os.fsencode(right), _EXCHANGE) == 0


def _remove_abandoned(out: Path) -> None:
    for draft in out.parent.glob(f".{glob.escape(out.name)}.*.draft"):
        with suppress(OSError):  # held by a living run, or gone by now
            os.close(_lock(draft))
            if (draft / REPLACED).exists() and not out.exists():
                (draft / REPLACED).rename(out)
            shutil.rmtree(draft, ignore_errors=True)


def _lock(folder: Path) -> int:
    """Lock a folder, or raise BlockingIOError; closing the handle lets it go."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise
    return handle


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
