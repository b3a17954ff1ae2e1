"""Interactions of any origin: read from files, and numbered together."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from headwater.errors import DataError
from models.evaluation.metrics import Ints, Relevance
from models.interactions import Ids, Interactions, Items, Users
from models.retrieval.transformer import Words

NO_WISH = ("impression", "return")
"""Types of events that do not say that somebody wanted an item."""
_TIME = "event_time"


@dataclass(frozen=True)
class Task:
    """Interactions to learn from and to be judged by, in one numbering.

    Attributes
    ----------
    items
        What may be shown: everything that was trained on, or listed.
    wanted
        What test users had; items that may not be shown have numbers behind all others.
    timed
        Whether the log has times, beside its order.
    span_ms
        How long what is judged took, if all of it happened after all that is learned from.
    """

    users: Users
    items: Items
    words: Words
    log: Interactions
    wanted: Relevance
    test_users: Ints
    timed: bool
    span_ms: int | None
    counts: Mapping[str, int]


def read_task(train: Path, test: Path, repeats: bool, items: Path | None = None, users: Path | None = None) -> Task:
    """Read and number both files.

    Raises
    ------
    DataError
        A file cannot be read, lacks a column, or holds no interaction.
    """
    learned, judged = _read(train), _read(test)
    listed = pa.table({"item_id": pa.array([], pa.string())}) if items is None else _listed(items, "item_id")
    told = None if users is None else _listed(users, "user_id")
    catalogue = Items.from_table(listed, also=pc.unique(learned["item_id"]).to_pylist())
    everyone = [*pc.unique(learned["user_id"]).to_pylist(), *pc.unique(judged["user_id"]).to_pylist()]
    people = _known(told, everyone)
    user_ids, item_ids = people.ids, catalogue.ids
    log = _log(learned, user_ids, item_ids)
    user, item = user_ids.dense(judged["user_id"].to_pylist()), item_ids.dense(judged["item_id"].to_pylist())
    never = item < 0
    strangers = np.unique(np.asarray(judged["item_id"].to_pylist(), object)[never].astype(str), return_inverse=True)[1]
    item[never] = len(item_ids) + strangers
    had = np.isin(user.astype(np.int64) << 32 | item, log.user.astype(np.int64) << 32 | log.item)
    kept = np.ones(len(user), bool) if repeats else ~had
    wanted = Relevance.from_pairs(
        user[kept], item[kept], len(user_ids), len(item_ids) + int(strangers.max(initial=-1)) + 1
    )
    if not len(wanted.users):
        raise DataError(f"{test}: every item in it was had before, so nothing is left to find. Pass --repeats allow.")
    timed, span = _TIME in learned.column_names, None
    if timed and _TIME in judged.column_names:
        first, last = (int(of(judged[_TIME]).as_py()) for of in (pc.min, pc.max))
        span = last - first + 1 if first >= int(log.at_ms[-1]) else None
    counts = {
        "train": len(log), "test": int(kept.sum()), "test_had_before": int(had.sum()), "items": len(item_ids),
        "test_of_unknown_items": int(never.sum()), "users": len(user_ids), "test_users": len(wanted.users),
        "new_test_users": int((np.bincount(log.user, minlength=len(user_ids))[wanted.users] == 0).sum()),
    }  # fmt: skip
    words = Words.of(_texts(listed, item_ids))
    return Task(people, catalogue, words, log, wanted, wanted.users, timed, span, counts)


def _read(path: Path) -> pa.Table:
    """``user_id`` and ``item_id`` as strings, and ``event_time`` in epoch milliseconds where there are times."""
    table = _open(path)
    if "event_type" in table.column_names:
        table = table.filter(pc.invert(pc.is_in(table["event_type"].cast(pa.string()), pa.array(NO_WISH))))
    columns = {name: _column(path, table, name) for name in ("user_id", "item_id")}
    if not table.num_rows:
        raise DataError(f"{path}: holds no interaction. Write at least one row of user_id and item_id.")
    if _TIME in table.column_names:
        columns[_TIME] = _times(path, table[_TIME])
    return pa.table(columns)


def _open(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: cannot be read, {error}. Name a Parquet file.") from None


def _column(path: Path, table: pa.Table, name: str) -> pa.ChunkedArray:
    if name not in table.column_names:
        raise DataError(f"{path}: no column {name}, only {', '.join(table.column_names)}. Rename or add it.")
    if table[name].null_count:
        raise DataError(f"{path}: {table[name].null_count} rows have no {name}. Leave them out.")
    try:
        return table[name].cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{path}: {name} is of type {table[name].type}, {error}. Write strings or integers.") from None


def _listed(path: Path, key: str) -> pa.Table:
    """A table of items or users, each once, its key as a string."""
    table = _open(path)
    keys = _column(path, table, key)
    if len(pc.unique(keys)) < len(keys):
        raise DataError(f"{path}: some {key} is listed more than once. Keep one row of each.")
    return table.set_column(table.schema.get_field_index(key), key, keys)


def _texts(listed: pa.Table, items: Ids) -> list[list[str]]:
    """What is told of each item: texts, words of texts, and what lists hold, each with its column."""
    texts: list[list[str]] = [[] for _ in range(len(items))]
    numbers = items.dense(listed["item_id"].to_pylist()).tolist()
    for name in listed.column_names:
        kind = listed.schema.field(name).type
        if name == "item_id" or not (pa.types.is_string(kind) or pa.types.is_list(kind)):
            continue
        for number, held in zip(numbers, listed[name].to_pylist(), strict=True):
            for text in [held] if isinstance(held, str) else held or ():
                words = re.findall(r"\w+", str(text).lower())
                texts[number] += [f"{name}={text}", *(f"{name}~{word}" for word in words if len(words) > 1)]
    return texts


def _known(told: pa.Table | None, everyone: Sequence[str]) -> Users:
    """Users with the traits that are told of them; of nobody else."""
    if told is not None:
        told = told.filter(pc.is_in(told["user_id"], pa.array(everyone, pa.string())))
    return Users.from_table(told, everyone)


def _times(path: Path, column: pa.ChunkedArray) -> pa.ChunkedArray:
    if column.null_count:
        raise DataError(f"{path}: {column.null_count} rows have no {_TIME}. Leave them out, or the column.")
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        return column.cast(pa.timestamp("ms"), safe=False).cast(pa.int64())
    if pa.types.is_integer(column.type):
        return column.cast(pa.int64())
    raise DataError(f"{path}: {_TIME} is of type {column.type}. Write instants, or integers that grow with time.")


def _log(table: pa.Table, users: Ids, items: Ids) -> Interactions:
    """Interactions by time; those of one time stay in the file's order, as do all where there are no times."""
    n = table.num_rows
    at_ms = table[_TIME].to_numpy() if _TIME in table.column_names else np.arange(n)
    order = np.argsort(at_ms, kind="stable")
    user, item = (ids.dense(table[name].to_pylist())[order] for ids, name in ((users, "user_id"), (items, "item_id")))
    return Interactions(user, item, at_ms[order].astype(np.int64), len(users), len(items))
