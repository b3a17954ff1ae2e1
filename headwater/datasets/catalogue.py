"""Complete Journey's products, households and promotions as tables that features and models read."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

YEAR_START = datetime(2017, 1, 1, tzinfo=UTC)
STORES_ZONE = ZoneInfo("America/New_York")
FIRST_MONDAY = datetime(2016, 12, 26)
"""A date on the stores' wall; it gets its zone where it is used."""
WEEKS = 53
PLACES = ("display_location", "mailer_location")
INSTANT = pa.timestamp("us", tz="UTC")

AGES = ("19-24", "25-34", "35-44", "45-54", "55-64", "65+")
INCOMES = (
    "Under 15K",
    "15-24K",
    "25-34K",
    "35-49K",
    "50-74K",
    "75-99K",
    "100-124K",
    "125-149K",
    "150-174K",
    "175-199K",
    "200-249K",
    "250K+",
)
SIZES = {"1": 1, "2": 2, "3": 3, "4": 4, "5+": 5}
KIDS = {"0": 0, "1": 1, "2": 2, "3+": 3}
OWNERS = {"Homeowner": 1, "Probable Homeowner": 1, "Renter": 0, "Probable Renter": 0}
MARRIED = {"Married": 1, "Unmarried": 0}
PROFILE = ("age", "income", "home_owner", "household_size", "kids", "married")

SHORTHAND = {
    "frzn": "frozen",
    "refrgratd": "refrigerated",
    "sft": "soft",
    "drnk": "drink",
    "btl": "bottle",
    "carb": "carbonated",
    "sw gds": "sweet goods",
    "choc": "chocolate",
    "veg": "vegetables",
    "bkd": "baked",
    "cond": "condensed",
    "snd": "sandwich",
    "chix": "chicken",
    "brkfst": "breakfast",
    "cnd": "canned",
    "pkg": "package",
    "frz": "frozen",
    "gds": "goods",
    "fem. hygn.": "feminine hygiene",
    "catfd": "cat food",
    "incl": "",
}
_WORDS = re.compile(r"(?<![a-z])(" + "|".join(map(re.escape, sorted(SHORTHAND, key=len, reverse=True))) + r")(?![a-z])")


def items(products: pa.Table) -> pa.Table:
    """One row per product: ids as decimal strings, names that a person can read."""
    products = products.sort_by("product_id")
    described = products.select(["product_type", "product_category", "department", "package_size"]).to_pydict()
    names = [
        readable(kind or category or department, size)
        for kind, category, department, size in zip(*described.values(), strict=True)
    ]
    return pa.table(
        {
            "item_id": products["product_id"].cast(pa.string()),
            "department": products["department"],
            "category": products["product_category"],
            "brand": products["brand"],
            "name": pa.array(names),
            "size": products["package_size"],
            "manufacturer": products["manufacturer_id"].cast(pa.string()),
        }
    )


def readable(kind: str, size: str | None) -> str:
    """Turn a till's shorthand into words: ``SFT DRNK 2 LITER`` of ``2 L`` is ``Soft drink 2 liter, 2 L``."""
    words = re.sub(r"\(.*", "", kind.lower())
    words = _WORDS.sub(lambda found: SHORTHAND[found[0]], words)
    words = re.sub(r"\s*([&/])\s*", r" \1 ", words.replace(":", ": "))
    words = re.sub(r"\s+", " ", words).strip(" -:&/")
    name = words[:1].upper() + words[1:]
    measure = " ".join((size or "").split())
    return f"{name}, {measure}" if measure else name


def users(demographics: pa.Table, households: npt.NDArray[np.int64]) -> pa.Table:
    """One row per household; what is not known of it is null (two thirds told nothing)."""
    told = {row["household_id"]: row for row in demographics.to_pylist()}
    rows = []
    for household in households.tolist():
        row = told.get(household, {})
        rows.append(
            {
                "user_id": str(household),
                "age_band": row.get("age"),
                "income_band": row.get("income"),
                "home_ownership": row.get("home_ownership"),
                "marital_status": row.get("marital_status"),
                "household_comp": row.get("household_comp"),
                "age": _rank(AGES, row.get("age")),
                "income": _rank(INCOMES, row.get("income")),
                "home_owner": OWNERS.get(row.get("home_ownership", "")),
                "household_size": SIZES.get(row.get("household_size", "")),
                "kids": KIDS.get(row.get("kids_count", "")),
                "married": MARRIED.get(row.get("marital_status", "")),
            }
        )
    text = ("user_id", "age_band", "income_band", "home_ownership", "marital_status", "household_comp")
    schema = pa.schema([*((name, pa.string()) for name in text), *((name, pa.int64()) for name in PROFILE)])
    return pa.Table.from_pylist(rows, schema=schema)


def household_profile(users_table: pa.Table) -> pa.Table:
    """Demographics as a feature source, known from the first day of the year."""
    rows = users_table.num_rows
    start = pa.repeat(pa.scalar(YEAR_START, INSTANT), rows)
    columns = {"user_id": users_table["user_id"], "event_timestamp": start, "created": start}
    return pa.table(columns | {name: users_table[name] for name in PROFILE})


def week_start(week: int) -> datetime:
    """UTC instant at which a week of the data set begins: midnight on the stores' Mondays.

    The purchases' own weeks turn over at 05:00 UTC in winter and 04:00 in summer, without an exception.
    """
    monday = FIRST_MONDAY + timedelta(weeks=week - 1)
    return monday.replace(tzinfo=STORES_ZONE).astimezone(UTC)


def promotions(path: Path) -> pa.Table:
    """Share of the stores that displayed a product, or had it in their mailer, in each week it was promoted.

    Twenty million rows, sorted by week, pass in batches; what is held is one flag per (product, store) of the week at
    hand, since a store may list a product more than once.
    """
    file = pq.ParquetFile(path, read_dictionary=[*PLACES])
    products, stores = _distinct(file, "product_id"), _distinct(file, "store_id")
    shares = np.zeros((len(PLACES), WEEKS + 1, len(products)))
    shown = np.zeros((len(PLACES), len(products) * len(stores)), dtype=bool)
    for week, rows in _by_week(file):
        shown[:] = False
        for batch in rows:
            cell = np.searchsorted(products, batch["product_id"].to_numpy()) * len(stores)
            cell += np.searchsorted(stores, batch["store_id"].to_numpy())
            for flags, place in zip(shown, PLACES, strict=True):
                flags[cell[pc.not_equal(batch[place].cast(pa.string()), "0").to_numpy(zero_copy_only=False)]] = True
        shares[:, week] = shown.reshape(len(PLACES), len(products), len(stores)).mean(axis=2)
    weeks, promoted = np.nonzero(shares.any(axis=0))
    display, mailer = shares[:, weeks, promoted]
    instants = pa.array([week_start(week) for week in range(WEEKS + 1)], INSTANT).take(pa.array(weeks))
    return pa.table(
        {
            "item_id": pa.array(products[promoted]).cast(pa.string()),
            "event_timestamp": instants,
            "created": instants,
            "display_share": display,
            "mailer_share": mailer,
        }
    )


def _by_week(file: pq.ParquetFile) -> Iterator[tuple[int, list[pa.RecordBatch]]]:
    """Rows of each week, ascending, as pieces of the file's batches."""
    held: list[pa.RecordBatch] = []
    current: int | None = None
    for batch in file.iter_batches(batch_size=1 << 18, columns=["product_id", "store_id", "week", *PLACES]):
        weeks = batch["week"].to_numpy()
        for week in np.unique(weeks).tolist():
            if current is not None and week != current:
                yield current, held
                held = []
            current = week
            first, end = np.searchsorted(weeks, [week, week + 1]).tolist()
            held.append(batch.slice(first, end - first))
    if current is not None:
        yield current, held


def _distinct(file: pq.ParquetFile, column: str) -> npt.NDArray[np.int64]:
    values: npt.NDArray[np.int64] = np.sort(pc.unique(file.read(columns=[column])[column]).to_numpy())
    return values


def _rank(bands: tuple[str, ...], band: str | None) -> int | None:
    return None if band is None else bands.index(band)
