"""One Apache Kafka broker in KRaft mode, on loopback, and the platform's topics."""

import shutil
import subprocess
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from headwater import topics
from headwater.errors import ResourceError, UnavailableError
from headwater.runtime import classes
from headwater.runtime.jars import kafka_classpath
from headwater.runtime.java import SHORT_RUN, find_java
from headwater.runtime.ports import answers, free_port

if TYPE_CHECKING:
    from confluent_kafka.admin import AdminClient

GIB = 1 << 30
FOREVER = str((1 << 63) - 1)
LOG4J = Path(__file__).with_name("log4j2.properties")


def command(data_dir: Path, host: str, port: int, heap_mb: int) -> list[str]:
    """Format the data folder if it is new and return the broker's command line.

    The controller's port is chosen at each start: with one voter only the broker itself has to know it.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    config = data_dir / "server.properties"
    config.write_text(_properties(data_dir / "log", host, port, free_port(host)))
    if not (data_dir / "log" / "meta.properties").exists():
        _format(config)
    return [
        *_java("broker", heap_mb), "-XX:+ExitOnOutOfMemoryError", f"-Djava.io.tmpdir={_fresh(data_dir / 'tmp')}",
        "-cp", kafka_classpath(), "kafka.Kafka", str(config),
    ]  # fmt: skip


def _fresh(scratch: Path) -> Path:
    """Empty where a broker unpacks its codecs, of which one that was killed leaves them."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    return scratch.resolve()


def is_ready(bootstrap: str) -> bool:
    """Whether a broker answers a metadata request."""
    from confluent_kafka import KafkaException

    host, _, port = bootstrap.split(",")[0].rpartition(":")
    if not answers(host, int(port)):
        return False  # asked first, because the client logs each refused connection
    try:
        return bool(_admin(bootstrap).list_topics(timeout=3).brokers)
    except KafkaException:
        return False


def create_topics(bootstrap: str, partitions: int, names: Iterable[str] = topics.ALL) -> None:
    """Create the topics that are missing; those that exist are left as they are.

    Raises
    ------
    UnavailableError
        The broker does not answer, or refuses one.
    """
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import NewTopic

    admin = _admin(bootstrap)
    try:
        existing = admin.list_topics(timeout=10).topics
        wanted = [
            NewTopic(name, num_partitions=partitions, replication_factor=1, config=topic_config(name))
            for name in names
            if name not in existing
        ]
        for outcome in admin.create_topics(wanted).values() if wanted else ():
            outcome.result(timeout=30)
    except KafkaException as error:
        raise UnavailableError(
            f"kafka at {bootstrap}: topics not created, {error.args[0]}. Run `headwater status`."
        ) from None


def topic_config(name: str) -> dict[str, str]:
    """Records carry the platform's clock, perhaps years from the broker's: none is dropped or refused by age."""
    config = {
        "message.timestamp.type": "CreateTime",
        "message.timestamp.before.max.ms": FOREVER,
        "message.timestamp.after.max.ms": FOREVER,
        "retention.ms": "-1",
    }
    if name in topics.COMPACTED:
        return config | {"cleanup.policy": "compact", "segment.bytes": str(32 << 20)}
    return config | {"retention.bytes": str(4 * GIB), "segment.bytes": str(128 << 20)}


def _properties(log_dir: Path, host: str, port: int, controller_port: int) -> str:
    values = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": f"1@{host}:{controller_port}",
        "listeners": f"PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://{host}:{port}",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "log.dirs": log_dir.resolve(),
        "auto.create.topics.enable": "false",
        "offsets.topic.replication.factor": 1,
        "offsets.topic.num.partitions": 4,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "transaction.state.log.num.partitions": 4,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        "group.initial.rebalance.delay.ms": 0,
        "log.retention.ms": -1,
        "log.message.timestamp.after.max.ms": FOREVER,
        "log.message.timestamp.before.max.ms": FOREVER,
        "log.cleaner.dedupe.buffer.size": 16 << 20,  # of the heap; Kafka's own default would take a third of ours
        "num.network.threads": 2,
        "num.io.threads": 4,
        "background.threads": 2,
        "broker.session.timeout.ms": 6000,  # after a kill, a restart waits for this
    }
    return "".join(f"{key}={value}\n" for key, value in values.items())


def _format(config: Path) -> None:
    cluster_id = urlsafe_b64encode(b"\0" + uuid.uuid4().bytes[1:]).decode().rstrip("=")  # begins with no dash
    formatted = subprocess.run(
        [*_java("format", 128), "-cp", kafka_classpath(), "kafka.tools.StorageTool", "format",
         "--cluster-id", cluster_id, "--config", str(config)],
        capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if formatted.returncode:
        last = (formatted.stderr or formatted.stdout).strip().splitlines()[-1:]
        raise ResourceError(
            f"kafka: {config.parent} cannot be formatted, {' '.join(last)}. Mend or remove that folder."
        )


def _java(name: str, heap_mb: int) -> list[str]:
    return [
        str(find_java().binary), f"-Xmx{heap_mb}m", f"-Xms{min(heap_mb, 128)}m",
        *SHORT_RUN.split(), *classes.flags(name),
        "-Djava.awt.headless=true", f"-Dlog4j2.configurationFile={LOG4J}", "-Dlog4j2.disableJmx=true",
    ]  # fmt: skip


def _admin(bootstrap: str) -> "AdminClient":
    from confluent_kafka.admin import AdminClient

    return AdminClient({"bootstrap.servers": bootstrap, "log_level": 0, "socket.timeout.ms": 5000})
