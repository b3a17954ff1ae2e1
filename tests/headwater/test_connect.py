"""TLS and passwords: what is let in, what is refused in one sentence, and what is never shown."""

import asyncio
import contextlib
import ipaddress
import json
import ssl
import threading
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from headwater.cli.main import build
from headwater.clock import StoredClock
from headwater.errors import ConfigError, UnavailableError
from headwater.online.connect import connect, waits
from headwater.online.wire import Wire, pack
from headwater.settings import Settings, addresses, get_settings, shown_url

PASSWORD = "s3cret/with#signs"
ENCODED = "s3cret%2Fwith%23signs"


@pytest.fixture
def guarded(valkey_client, valkey):
    """URL of a server that asks user ``headwater`` for a password, without the two."""
    valkey_client.acl_setuser("headwater", enabled=True, passwords=[f"+{PASSWORD}"], keys=["*"], categories=["+@all"])
    yield valkey
    valkey_client.acl_deluser("headwater")


def with_user(url, password=ENCODED):
    return url.replace("://", f"://headwater:{password}@")


def certificate(folder, name):
    """A self-signed certificate of an address: paths of it and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(name))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / f"{name}.pem", folder / f"{name}.key"
    paths[0].write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


@contextlib.contextmanager
def tls_in_front_of(port, paths):
    """Port that speaks TLS and passes on to a server without, since the wheel's server has none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*paths)
    ended, found = threading.Event(), []

    async def pump(source, sink):
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                sink.write(data)
                await sink.drain()
        sink.close()

    async def serve(reader, writer):
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))

    async def run():
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        found.append(server.sockets[0].getsockname()[1])
        listening.set()
        await asyncio.to_thread(ended.wait)
        server.close()

    listening = threading.Event()
    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    try:
        assert listening.wait(20)
        yield found[0]
    finally:
        ended.set()
        thread.join()


def port_of(url):
    return int(url.split(":")[2].split("/")[0])


@pytest.mark.integration
def test_tls_and_a_password_together(guarded, tmp_path):
    paths = certificate(tmp_path, "127.0.0.1")
    with (
        tls_in_front_of(port_of(guarded), paths) as port,
        connect(with_user(f"rediss://127.0.0.1:{port}?ssl_ca_certs={paths[0]}")) as client,
    ):
        StoredClock(client).set(1_000)
        assert client.get("hw1:clock").split()[1] == b"1000"


@pytest.mark.integration
@pytest.mark.parametrize(
    ("name", "query", "said"),
    [
        ("127.0.0.1", "", "self-signed certificate.*ssl_ca_certs=FILE in HEADWATER_REDIS"),
        ("127.0.0.2", "?ssl_ca_certs={}", "not valid for '127.0.0.1'.*ssl_ca_certs=FILE in HEADWATER_REDIS"),
    ],
    ids=["authority", "name"],
)
def test_a_certificate_that_proves_nothing_is_refused(valkey, tmp_path, name, query, said):
    paths = certificate(tmp_path, name)
    with tls_in_front_of(port_of(valkey), paths) as port:
        for work in (lambda client: client.ping(), read):
            with (
                connect(f"rediss://127.0.0.1:{port}{query.format(paths[0])}") as client,
                pytest.raises(UnavailableError, match=f"127.0.0.1:{port}: its certificate is not trusted.*{said}"),
            ):
                work(client)


@pytest.mark.integration
def test_tls_to_a_server_without_is_given_up(valkey):
    url = valkey.replace("redis:", "rediss:") + "?socket_timeout=0.5"
    with connect(url) as client, pytest.raises(UnavailableError, match="HEADWATER_REDIS"):
        client.ping()


@pytest.mark.integration
def test_a_wrong_password_is_refused_without_being_shown(guarded):
    for work in (lambda client: client.ping(), read):
        with connect(with_user(guarded, "wr0ng")) as client, pytest.raises(UnavailableError) as refusal:
            work(client)
        said = str(refusal.value)
        assert f"127.0.0.1:{port_of(guarded)}: it refuses the user name or password" in said
        assert "HEADWATER_REDIS" in said
        assert "wr0ng" not in said


@pytest.mark.integration
@pytest.mark.parametrize(("command", "password"), [("status", ENCODED), ("doctor", ENCODED), ("doctor", "wr0ng")])
def test_no_command_prints_the_password(guarded, monkeypatch, tmp_path, command, password):
    monkeypatch.setenv("HEADWATER_REDIS", with_user(guarded, password) + "?socket_timeout=5")
    monkeypatch.setenv("HEADWATER_STATE_DIR", str(tmp_path))
    get_settings.cache_clear()
    printed = CliRunner().invoke(build(command), [command, "--json"]).output
    told = json.loads(printed)
    if command == "doctor":
        (found,) = (check for check in told["checks"] if check["name"] == "redis")
        assert (found["ok"], found["found"]) == (password == ENCODED, guarded)
        assert ("refuses" in found["mend"]) == (password != ENCODED)
    for secret in (PASSWORD, password, "headwater:"):
        assert secret not in printed


@pytest.mark.integration
def test_a_connection_that_the_server_closed_or_that_has_bytes_left_is_not_used_again(valkey):
    with connect(valkey) as client, connect(valkey) as other:
        wire = Wire(client)

        def number():
            return wire.send([pack((b"CLIENT", b"ID"))], [b""])[0]

        first = number()
        assert number() == first
        other.client_kill_filter(_id=str(first))
        second = number()
        assert second != first
        [connection] = wire._idle
        connection._sock.sendall(pack((b"PING",)))
        while not waits(connection._sock):
            pass
        third = number()
        assert third != second
        client.connection_pool.disconnect()
        assert number() != third


def test_settings_do_not_show_it():
    held = Settings(redis=with_user("redis://127.0.0.1:1"))
    assert "s3cret" not in repr(held)
    assert "s3cret" not in repr(addresses(held))


@given(st.text(min_size=1, max_size=8).map(lambda text: "".join(f"%{byte:02X}" for byte in text.encode())))
def test_what_is_shown_of_a_url_is_where_it_leads(password):
    for scheme in ("redis", "rediss"):
        url = f"{scheme}://someone:{password}@host:7000/0?ssl_ca_certs=file"
        assert shown_url(url) == f"{scheme}://host:7000/0"


@pytest.mark.parametrize("url", ["redis://u:pa/ss@host:1", "redis://u:1/ss@host:1", "redis://u:p#s@host:1", "http://h"])
def test_a_url_that_its_password_cuts_short_is_refused_without_it(url):
    with pytest.raises(ConfigError, match=r"HEADWATER_REDIS.*%2F") as refusal:
        connect(url)
    assert "pa" not in str(refusal.value).replace("password", "")


def read(client):
    Wire(client).send([pack((b"GET", b"a"))], [b"a"])
