"""Commands to the nodes of a cluster: each to the one that holds its key's slot, all nodes at work at once."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from redis.cluster import PRIMARY, ClusterNode
from redis.crc import key_slot
from redis.exceptions import AskError, MovedError

from headwater.online.replies import Replies

_new_node: Any = ClusterNode  # redis-py's cluster client is untyped
_ASKING = b"*1\r\n$6\r\nASKING\r\n"


@dataclass(frozen=True, slots=True)
class _Asked:
    """Packed commands for a node, of which the last one's reply matters."""

    node: ClusterNode
    commands: tuple[bytes, ...]


def ask(cluster: Any, commands: Sequence[bytes], keys: Sequence[bytes], before: Sequence[bytes] = ()) -> list[Any]:
    """Replies to packed commands of one key each, in order; errors are replies too.

    A command that is sent on, because its slot has moved or is moving, is sent on once; a slot that has moved is looked
    for in its new place from then on.

    Parameters
    ----------
    keys : (n,)
        The key of each command.
    before
        Commands that a node has to have seen first, should it be one that is not known yet.
    """
    holders = [cluster.nodes_manager.get_node_from_slot(key_slot(key)) for key in keys]
    replies = _exchange(cluster, [_Asked(node, (one,)) for node, one in zip(holders, commands, strict=True)])
    sent_on = [at for at, reply in enumerate(replies) if isinstance(reply, AskError)]  # MovedError is one
    again = [_sent_on(cluster, holders[at], replies[at], commands[at], before) for at in sent_on]
    for at, reply in zip(sent_on, _exchange(cluster, again), strict=True):
        replies[at] = reply
    return replies


def ask_each(cluster: Any, command: bytes) -> list[Any]:
    """The reply of every primary to the same packed command."""
    return _exchange(cluster, [_Asked(node, (command,)) for node in cluster.get_primaries()])


def _sent_on(cluster: Any, holder: ClusterNode, error: AskError, command: bytes, before: Sequence[bytes]) -> _Asked:
    host = error.host or holder.host  # a node that does not know its own name leaves it out
    node = cluster.get_node(host, error.port) or _new_node(host, error.port, PRIMARY)
    if not isinstance(error, MovedError):
        return _Asked(node, (*before, _ASKING, command))
    node.server_type = PRIMARY
    cluster.nodes_manager.nodes_cache[node.name] = node
    cluster.nodes_manager.slots_cache[error.slot_id] = [node]
    return _Asked(node, (*before, command))


def _exchange(cluster: Any, asked: Sequence[_Asked]) -> list[Any]:
    """The last reply to each; what goes to one node goes together, and none is awaited before all is sent."""
    places: dict[str, list[int]] = {}
    for at, one in enumerate(asked):
        places.setdefault(one.node.name, []).append(at)
    replies: list[Any] = [None] * len(asked)
    with ExitStack() as held:
        waiting = []
        for mine in places.values():
            connection = held.enter_context(_connection(cluster, asked[mine[0]].node))
            connection.send_packed_command([b"".join([one for at in mine for one in asked[at].commands])])
            waiting.append((Replies(connection._sock), mine))
        for source, mine in waiting:
            for at in mine:
                replies[at] = source.take(len(asked[at].commands))[-1]
    return replies


@contextmanager
def _connection(cluster: Any, node: ClusterNode) -> Iterator[Any]:
    pool = cluster.get_redis_connection(node).connection_pool
    connection = pool.get_connection()
    try:
        yield connection
    except BaseException:
        connection.disconnect()  # what is left of the replies must not be read as another call's
        raise
    finally:
        pool.release(connection)
