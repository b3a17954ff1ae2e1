"""The catalogue that a retraining reads: the shop's tables, and items announced since these were written."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from headwater.announced import Attributes, announced_items
from headwater.log import get_logger
from headwater.settings import Settings, addresses
from models.interactions import catalogue
from models.paths import paths_of

log = get_logger(__name__)


def write_catalogue(settings: Settings, home: Path) -> Path:
    """Write ``items.parquet`` and ``users.parquet`` to ``training/catalogue``; the folder.

    What ``home`` has of an item counts, and of others what topic ``items`` says now.

    Raises
    ------
    DataError
        ``home`` has no ``items.parquet``.
    UnavailableError
        The broker does not answer: without it a retraining would forget what was announced.
    """
    items, users = catalogue(home)
    told = announced_items(addresses(settings).kafka)
    both = with_announced(items, told)
    folder = paths_of(settings).catalogue
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if users is not None:
        pq.write_table(users, folder / "users.parquet")
    pq.write_table(both, folder / "items.parquet")
    log.info("catalogue", items=len(both), announced=len(both) - len(items))
    return folder


def with_announced(items: pa.Table, told: dict[str, Attributes]) -> pa.Table:
    """The table with a row of each announced item that it lacks, in order of the ids.

    An attribute is read as its column's type, and is null where there is none, or it is no such value; what has no
    column is left.
    """
    known = set(items["item_id"].to_pylist())
    new = sorted(told.keys() - known)
    rows = [{**told[item], "item_id": item} for item in new]
    columns = {field.name: _column([row.get(field.name) for row in rows], field.type) for field in items.schema}
    return pa.concat_tables([items, pa.table(columns, items.schema)])


def _column(texts: list[str | None], kind: pa.DataType) -> pa.Array:
    def read(text: str | None) -> pa.Scalar:
        try:
            return pa.scalar(text, pa.string()).cast(kind)
        except pa.ArrowInvalid:
            return pa.scalar(None, kind)

    return pa.array([read(text).as_py() for text in texts], kind)
