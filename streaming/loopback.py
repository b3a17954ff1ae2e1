"""Keep the ports on which Beam, inside Flink, waits for its Python workers on loopback.

Beam takes the loopback address, tells the workers so, and then listens on all addresses
(``ServerFactory.InetSocketAddressServerFactory.createServer`` calls ``NettyServerBuilder.forPort(address.getPort())``);
no setting changes that. So the one class is copied out of Flink's jar with that call made ``forAddress(address)``, and
its jar lies in front of Flink's on the class path. A Flink whose class looks different is refused, not run open.

References
----------
The class file format, The Java Virtual Machine Specification, chapter 4.
"""

import struct
import zipfile
from pathlib import Path

from headwater.errors import ResourceError

CLASS = "org/apache/beam/sdk/fn/server/ServerFactory$InetSocketAddressServerFactory.class"
_JAR = "headwater-loopback.jar"
_UTF8, _CLASS, _METHOD, _NAME_AND_TYPE = 1, 7, 10, 12
_SIZES = {3: 5, 4: 5, 5: 9, 6: 9, 7: 3, 8: 3, 9: 5, 10: 5, 11: 5, 12: 5, 15: 4, 16: 3, 17: 5, 18: 5, 19: 3, 20: 3}
"""Bytes of a constant by its tag, but for texts."""
_INVOKE_VIRTUAL, _INVOKE_STATIC, _NOP = b"\xb6", b"\xb8", b"\0"


def library(flink: Path, into: Path) -> Path:
    """Fill ``into`` with links to the jars of Flink's ``lib`` and the jar that goes before its ``opt``.

    Parameters
    ----------
    flink
        Folder of the pip package ``pyflink``.

    Raises
    ------
    ResourceError
        Flink's class is another than the one known here.
    """
    into.mkdir(parents=True, exist_ok=True)
    for left in into.iterdir():
        left.unlink()
    for jar in (flink / "lib").glob("*.jar"):
        (into / jar.name).symlink_to(jar.resolve())
    (python,) = (flink / "opt").glob("flink-python*.jar")
    with zipfile.ZipFile(python) as held, zipfile.ZipFile(into / _JAR, "w") as ours:
        ours.writestr(CLASS, on_its_address(held.read(CLASS), python.name))
    return into


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
    raise ResourceError(
        f"{where}: its {CLASS} is not the one that is kept on loopback here. Install the versions of requirements.lock."
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
