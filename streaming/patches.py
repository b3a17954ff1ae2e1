"""Three classes of Flink's Python jar, each replaced by itself with a call made otherwise.

- Beam takes the loopback address for the ports on which it waits for Python workers, tells the workers so, and then
  listens on all addresses (``ServerFactory.InetSocketAddressServerFactory.createServer`` calls
  ``NettyServerBuilder.forPort(address.getPort())``); no setting changes that. The call is made ``forAddress(address)``.
- A task that is cancelled is interrupted. If that finds it writing a batch for Python, the batch's channel closes, and
  ``ArrowSerializer.close`` then fails to write the mark of the stream's end, which nobody would read. Flink holds a
  failure to clean up for fatal and ends the TaskManager, with which a mini-cluster is lost. The mark is not written.
- When a Python worker has died, the tasks that share it release it, each for itself and one of them for all that hold
  it still. If two do so at once, ``WrappedSdkHarnessClient.unref`` counts below 0 and calls that an error, which is
  fatal as above although the worker has been closed. It is not checked: only at 0 is the worker closed, once.

The classes are copied into a jar that lies in front of Flink's on the class path. A Flink whose classes look different
is refused, not run as it is.

Flink's planner lies within a jar of its loader, which unpacks it at each start, for a class loader of its own. Here it
is unpacked once and on the class path, so that its classes, half of all, come from Java's archive.

References
----------
The class file format, The Java Virtual Machine Specification, chapter 4.
"""

import hashlib
import os
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from headwater.errors import ResourceError

SERVER = "org/apache/beam/sdk/fn/server/ServerFactory$InetSocketAddressServerFactory.class"
SERIALIZER = "org/apache/flink/table/runtime/arrow/serializers/ArrowSerializer.class"
WORKER = "org/apache/beam/runners/fnexecution/control/DefaultJobBundleFactory$WrappedSdkHarnessClient.class"
PLANNER = "flink-table-planner.jar"
_JAR = "headwater-flink.jar"
_UTF8, _CLASS, _METHOD, _NAME_AND_TYPE = 1, 7, 10, 12
_SIZES = {3: 5, 4: 5, 5: 9, 6: 9, 7: 3, 8: 3, 9: 5, 10: 5, 11: 5, 12: 5, 15: 4, 16: 3, 17: 5, 18: 5, 19: 3, 20: 3}
"""Bytes of a constant by its tag, but for texts."""
_LOAD_THIS, _GET_FIELD, _INVOKE_VIRTUAL, _INVOKE_STATIC, _NOP = b"\x2a", b"\xb4", b"\xb6", b"\xb8", b"\0"
_LOAD_CONSTANT, _DROP_TWO = b"\x12", b"\x58"


def library(flink: Path, into: Path) -> Path:
    """Return a folder with links to the jars of Flink's ``lib``, its planner and the jar that goes before its ``opt``.

    It is made once: Java's archive of classes holds for files that are the same, and as old.

    Parameters
    ----------
    flink
        Folder of the pip package ``pyflink``.
    into
        Where the folder is made.

    Raises
    ------
    ResourceError
        A class of Flink's is another than the one known here.
    """
    (loader,) = (flink / "lib").glob("flink-table-planner-loader-*.jar")
    jars = sorted(jar.resolve() for jar in (flink / "lib").glob("*.jar") if jar != loader)
    made = into / f"flink-{_digest([*jars, loader, python_jar(flink), Path(__file__)])}"
    if made.exists():
        return made
    draft = made.with_name(f".{made.name}.{os.getpid()}")
    patched_jar(flink, draft)
    for jar in jars:
        (draft / jar.name).symlink_to(jar)
    with zipfile.ZipFile(loader) as held:
        held.extract(PLANNER, draft)
    try:
        draft.rename(made)
    except OSError:  # another process was quicker
        shutil.rmtree(draft)
    return made


def _digest(files: Iterable[Path]) -> str:
    told = [f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:12]


def patched_jar(flink: Path, into: Path) -> Path:
    """Write the jar of the patched classes; raises as :func:`library` does."""
    into.mkdir(parents=True, exist_ok=True)
    python, made = python_jar(flink), into / _JAR
    with zipfile.ZipFile(python) as held, zipfile.ZipFile(made, "w") as ours:
        for name, patch in PATCHES.items():
            ours.writestr(name, patch(held.read(name), python.name))
    return made


def python_jar(flink: Path) -> Path:
    """Flink's own jar of what runs Python."""
    (jar,) = (flink / "opt").glob("flink-python-*.jar")
    return jar


def on_its_address(code: bytes, where: str) -> bytes:
    """Return the class with its servers on the address that they are given.

    Raises
    ------
    ResourceError
        The call is not there, once.
    """
    pool = _Pool(code)
    port, by_port = pool.method("getPort", "()I", "java/net/InetSocketAddress"), pool.method("forPort", "(I)")
    if port is not None and by_port is not None:
        before = _INVOKE_VIRTUAL + struct.pack(">H", port) + _INVOKE_STATIC + struct.pack(">H", by_port)
        if code.count(before) == 1:
            more, by_address = pool.with_method(by_port, "forAddress", "(Ljava/net/SocketAddress;)")
            body = code[pool.end :].replace(before, _NOP * 3 + _INVOKE_STATIC + struct.pack(">H", by_address))
            return code[:8] + struct.pack(">H", by_address + 1) + code[10 : pool.end] + more + body
    raise _unknown(SERVER, where)


def without_end_mark(code: bytes, where: str) -> bytes:
    """Return the class whose closing does not end its stream, and frees what it holds as before.

    Raises
    ------
    ResourceError
        The call is not there, once, on a field of its own.
    """
    end = _Pool(code).method("end", "()V")
    if end is not None:
        call = _INVOKE_VIRTUAL + struct.pack(">H", end)
        at = code.find(call) - 4
        if code.count(call) == 1 and code[at : at + 2] == _LOAD_THIS + _GET_FIELD:
            return code[:at] + _NOP * 7 + code[at + 7 :]
    raise _unknown(SERIALIZER, where)


def released_by_many(code: bytes, where: str) -> bytes:
    """Return the class whose count of who holds it may go below 0.

    Raises
    ------
    ResourceError
        The check is not there, once, with its text.
    """
    check = _Pool(code).method("checkState", "(ZLjava/lang/Object;)V")
    if check is not None:
        call = _INVOKE_STATIC + struct.pack(">H", check)
        at = code.find(call)
        if code.count(call) == 1 and code[at - 2 : at - 1] == _LOAD_CONSTANT:
            return code[:at] + _DROP_TWO + _NOP * 2 + code[at + 3 :]
    raise _unknown(WORKER, where)


PATCHES: Mapping[str, Callable[[bytes, str], bytes]] = {
    SERVER: on_its_address, SERIALIZER: without_end_mark, WORKER: released_by_many,
}  # fmt: skip
"""What each class is replaced by; a patch is given the class and the name of its jar."""


def _unknown(name: str, where: str) -> ResourceError:
    return ResourceError(
        f"{where}: its {name} is not the one that is patched here. Install the versions of requirements.lock."
    )


class _Pool:
    """The constants of a class file."""

    def __init__(self, code: bytes) -> None:
        (self.count,) = struct.unpack_from(">H", code, 8)
        self._texts: dict[int, str] = {}
        self._pairs: dict[int, tuple[int, int]] = {}
        self._methods: dict[int, tuple[int, int]] = {}
        self._classes: dict[int, int] = {}
        at, number = 10, 1
        while number < self.count:
            tag = code[at]
            if tag == _UTF8:
                (length,) = struct.unpack_from(">H", code, at + 1)
                self._texts[number] = code[at + 3 : at + 3 + length].decode("utf-8", "replace")
                at += 3 + length
            else:
                if tag in (_METHOD, _NAME_AND_TYPE):
                    (self._methods if tag == _METHOD else self._pairs)[number] = struct.unpack_from(">HH", code, at + 1)
                if tag == _CLASS:
                    (self._classes[number],) = struct.unpack_from(">H", code, at + 1)
                at += _SIZES[tag]
            number += 2 if tag in (5, 6) else 1  # a long and a double count twice
        self.end = at

    def method(self, name: str, takes: str, of: str = "") -> int | None:
        """Number of the method so called whose descriptor and class begin so."""
        for number, (owner, pair) in self._methods.items():
            named, described = (self._texts[part] for part in self._pairs[pair])
            if named == name and described.startswith(takes) and self._texts[self._classes[owner]].startswith(of):
                return number
        return None

    def with_method(self, like: int, name: str, takes: str) -> tuple[bytes, int]:
        """Constants to append for a method of the same class and result, and its number."""
        owner, pair = self._methods[like]
        gives = self._texts[self._pairs[pair][1]].partition(")")[2]
        texts = b"".join(
            bytes([_UTF8]) + struct.pack(">H", len(text)) + text.encode() for text in (name, takes + gives)
        )
        named = struct.pack(">BHH", _NAME_AND_TYPE, self.count, self.count + 1)
        return texts + named + struct.pack(">BHH", _METHOD, owner, self.count + 2), self.count + 3
