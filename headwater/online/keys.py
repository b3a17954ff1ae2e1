"""Where an entity's values live.

One Redis hash per first join key: ``hw1:<project hash>:<join key>=<value>``. A field is a table or view id (8 bytes)
followed by the other join keys' values, so a user and 500 candidates are one key, one slot and one command, and
forgetting a user is one DEL. The project hash has a fixed length: no project's delete can reach another's keys.
"""

import hashlib
import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import overload


def project_prefix(project: str) -> bytes:
    """``hw1:`` and 16 hex digits."""
    return b"hw1:" + hashlib.blake2b(project.encode(), digest_size=8).hexdigest().encode() + b":"


def entity_key(prefix: bytes, join_key: str, value: str) -> bytes:
    """Key of the hash that holds all of an entity's values."""
    return prefix + f"{join_key}={value}".encode()


def showings_key(prefix: bytes, join_key: str, value: str) -> bytes:
    """Key of what an entity was shown; by its hash tag it lies in the slot of the entity's values."""
    return b"hw1-shown:{" + entity_key(prefix, join_key, value) + b"}"


Key = tuple[str, ...]


class Keys(Sequence[Key]):
    """Keys as columns, one of each join key's values; a key is made when it is asked for."""

    def __init__(self, columns: Sequence[Sequence[str]]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns[0])

    def __iter__(self) -> Iterator[Key]:
        return zip(*self.columns, strict=True)

    @overload
    def __getitem__(self, at: int) -> Key: ...
    @overload
    def __getitem__(self, at: slice) -> "Keys": ...
    def __getitem__(self, at: int | slice) -> "Key | Keys":
        parts = [column[at] for column in self.columns]
        return Keys(parts) if isinstance(at, slice) else tuple(map(str, parts))


def firsts(keys: Sequence[Key]) -> Sequence[str]:
    """The first value of each key."""
    return keys.columns[0] if isinstance(keys, Keys) else [key[0] for key in keys]


def taken(keys: Sequence[Key], places: Sequence[int]) -> list[list[str]]:
    """Some of the keys."""
    if isinstance(keys, Keys):
        return [list(key) for key in zip(*([column[at] for at in places] for column in keys.columns), strict=True)]
    return [list(keys[at]) for at in places]


def encoded(texts: Sequence[str]) -> list[bytes]:
    """UTF-8 of each text; of all at once where none has the separator in it."""
    parts = "\0".join(texts).encode().split(b"\0")
    return parts if len(parts) == len(texts) else [text.encode() for text in texts]


def rest_of_key(values: Sequence[str]) -> bytes:
    """The second and later join keys' values, each with its length, so that no two combinations are alike."""
    if not values:
        return b""
    encoded = [value.encode() for value in values]
    return b"".join(struct.pack("<H", len(value)) + value for value in encoded)


def rests_of_keys(keys: Sequence[Sequence[str]]) -> list[bytes]:
    """:func:`rest_of_key` of every key without its first value."""
    if any(len(key) != 2 for key in keys):
        return [rest_of_key(key[1:]) for key in keys]
    return [_size(len(value)) + value for value in encoded([key[1] for key in keys])]


_size = lru_cache(maxsize=1024)(struct.Struct("<H").pack)


def other_keys(rest: bytes) -> tuple[str, ...]:
    """Inverse of :func:`rest_of_key`."""
    values, at = [], 0
    while at < len(rest):
        (length,) = struct.unpack_from("<H", rest, at)
        values.append(rest[at + 2 : at + 2 + length].decode())
        at += 2 + length
    return tuple(values)
