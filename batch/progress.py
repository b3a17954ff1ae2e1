"""What an unfinished backfill has already written, kept beside it in the online store.

A mark says: of these events this bucket's keys are written to this table. It lies in one hash of the project, under the
table's id, so whatever deletes a table's tiles deletes its marks, and a store that is lost has lost both.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

from headwater.online.connect import connect
from headwater.online.keys import project_prefix
from headwater.plan import Table


class Marks:
    """Marks of one view's tables over one set of archived events; without a store there are none."""

    def __init__(self, url: str | None, project: str, tables: Sequence[Table], events: str, buckets: int) -> None:
        self._url, self._key = url, project_prefix(project) + b"backfill"
        run = blake2b(f"{events} {buckets}".encode(), digest_size=8).digest()
        self._fields = [table.field + run for table in tables]

    def done(self) -> dict[int, int]:
        """Buckets of which all tables are written, and the tiles of each."""
        held = self._held()
        tiles = [
            {int(name[16:]): int(count) for name, count in held.items() if name[:16] == run} for run in self._fields
        ]
        return {bucket: sum(one[bucket] for one in tiles) for bucket in set.intersection(*map(set, tiles))}

    def put(self, bucket: int, tiles: Sequence[int]) -> None:
        """Note that a bucket is written, and the tiles of each table."""
        if self._url is not None:
            names = [run + str(bucket).encode() for run in self._fields]
            with connect(self._url) as client:
                client.hset(self._key, mapping=dict(zip(names, tiles, strict=True)))

    def clear(self) -> None:
        """Forget them, and those of other events, as the run has ended and the next one begins anew."""
        tables = {run[:8] for run in self._fields}
        names = [name for name in self._held() if name[:8] in tables]
        if self._url is not None and names:
            with connect(self._url) as client:
                client.hdel(self._key, *names)

    def _held(self) -> dict[bytes, bytes]:
        if self._url is None:
            return {}
        with connect(self._url) as client:
            held: Any = client.hgetall(self._key)
        return dict(held)
