"""What is expected of events and features: ``expectations.toml``, beside the definitions it speaks of.

    [events.events]                          # a KafkaSource, by its name
    newest_within = "2h"                     # the newest event is no older
    rows_per_day = { min = 100, max = 1e6 }  # of each whole UTC day

    [events.events.columns.value]            # a column, or an entry of a map as "context.store"
    min = 0
    max = 10_000
    nulls = 0.05                             # share without a value, at most

    [events.events.columns.event_type]
    values = ["view", "purchase"]            # or matches = "[a-z_]+", of the whole text

    [features.user_purchases_7d]
    min = 0
    nulls = 0.5

    [training_set]
    quarantined = 0.01                       # share of rows that may fail before the set is refused

``min``, ``max``, ``values`` and ``matches`` judge a row, and a null passes them; ``nulls`` judges a column. NaN is a
null. Expectations judge and report; what counts as an event is not theirs to say (:mod:`headwater.events`).
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from headwater.avro import MAP
from headwater.declared import read_declared
from headwater.errors import ConfigError
from headwater.plan import FeaturePlan, Source
from headwater.records import ENVELOPE, is_envelope
from headwater.spans import parse_span

FILE = "expectations.toml"
Mask = NDArray[np.bool_]
Span = Annotated[timedelta, BeforeValidator(lambda text: timedelta(milliseconds=parse_span(str(text))))]
Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Range(_Strict):
    """Both ends are in it; one that is not given is open."""

    min: Number | None = None
    max: Number | None = None

    @model_validator(mode="after")
    def _says_something(self) -> "Range":
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} lies above max {self.max}")
        return self


class Column(Range):
    """Of a column's values."""

    nulls: Share | None = None
    values: tuple[str, ...] | None = None
    matches: str | None = None

    @model_validator(mode="after")
    def _compiles(self) -> "Column":
        if self.matches is not None:
            try:
                re.compile(self.matches)
                pc.match_substring_regex(pa.array([""]), _whole(self.matches))
            except (re.error, pa.ArrowInvalid) as error:
                raise ValueError(f"{self.matches!r} is no pattern that re2 reads, {error}") from None
        return self

    @property
    def is_of_texts(self) -> bool:
        return self.values is not None or self.matches is not None

    @property
    def is_of_numbers(self) -> bool:
        return self.min is not None or self.max is not None

    def broken(self, column: pa.ChunkedArray) -> Iterator[tuple[str, Mask]]:
        """Each expectation of a row, as it is declared, and the rows that fail it; bool (n,)."""
        if self.min is not None:
            yield f"min {self.min:g}", _mask(pc.less(column, _limit(column, self.min, math.ceil)))
        if self.max is not None:
            yield f"max {self.max:g}", _mask(pc.greater(column, _limit(column, self.max, math.floor)))
        if self.values is not None:
            known = pc.is_in(column, value_set=pa.array(self.values, pa.string()))
            yield f"values {', '.join(self.values)}", ~_mask(pc.or_(known, pc.is_null(column)))
        if self.matches is not None:
            yield f"matches {self.matches}", _mask(pc.invert(pc.match_substring_regex(column, _whole(self.matches))))


class EventExpectations(_Strict):
    """Of the events of one source."""

    newest_within: Span | None = None
    rows_per_day: Range = Range()
    columns: dict[str, Column] = {}


class TrainingSetExpectations(_Strict):
    """Of a training set as a whole."""

    quarantined: Share = 0.0


class Expectations(_Strict):
    """All of them."""

    events: dict[str, EventExpectations] = {}
    features: dict[str, Column] = {}
    training_set: TrainingSetExpectations = TrainingSetExpectations()


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of one expectation: how many ``rows`` were judged, how many ``failed``, and where the first lie."""

    place: str
    subject: str
    expected: str
    rows: int
    failed: int
    holds: bool
    examples: tuple[str, ...] = ()


def load_expectations(plan: FeaturePlan) -> Expectations:
    """Read the file of the repository that a plan is compiled from; where there is none, nothing is expected.

    Raises
    ------
    ConfigError
        The file is not TOML, a field is unknown, or it speaks of what the definitions do not have.
    """
    path = Path(plan.repo) / FILE
    if not path.is_file():
        return Expectations()
    found = read_declared(path, Expectations)
    for problem in _contradictions(found, plan):
        raise ConfigError(f"{path}: {problem}")
    return found


def columns_of(source: Source) -> Mapping[str, str]:
    """What the archive holds of a source, and of which type."""
    return ENVELOPE if is_envelope(source) else dict(source.columns)


def taken(table: pa.Table, name: str) -> pa.ChunkedArray:
    """A column, or an entry of a map."""
    if name in table.column_names:
        return table[name]
    column, _, entry = name.partition(".")
    return pc.map_lookup(table[column], entry, "first")


class Tally:
    """Counts what fails in tables that come one after the other.

    Parameters
    ----------
    place
        What the tables are of, as findings tell it.
    """

    def __init__(self, place: str, columns: Mapping[str, Column], examples: int = 5) -> None:
        self._place, self._columns, self._most = place, columns, examples
        self._rows: dict[str, int] = dict.fromkeys(columns, 0)
        self._nulls: dict[str, int] = dict.fromkeys(columns, 0)
        self._failed: dict[tuple[str, str], int] = {}
        self._examples: dict[tuple[str, str], list[str]] = {}

    def add(self, table: pa.Table, names: Mapping[int, str] | None = None) -> list[list[str]]:
        """Judge rows; return what each fails.

        Parameters
        ----------
        names
            How to call rows that fail, by their place in the table; else by value alone.
        """
        reasons: list[list[str]] = [[] for _ in range(table.num_rows)]
        for name, column in self._columns.items():
            held = taken(table, name)
            self._rows[name] += table.num_rows
            self._nulls[name] += int(_mask(pc.is_null(held, nan_is_null=True)).sum())
            for expected, mask in column.broken(held):
                rows = np.flatnonzero(mask).tolist()
                self._failed[name, expected] = self._failed.get((name, expected), 0) + len(rows)
                examples = self._examples.setdefault((name, expected), [])
                for row in rows[: self._most - len(examples)]:
                    examples.append(f"{held[row].as_py()}" + (f" at {names[row]}" if names else ""))
                for row in rows:
                    reasons[row].append(f"{name}: {expected}")
        return reasons

    def findings(self, tolerated: float = 0.0) -> Iterator[Finding]:
        """What was found, where a share of failing rows is ``tolerated``."""
        for name, column in self._columns.items():
            rows = self._rows[name]
            for (subject, expected), failed in self._failed.items():
                if subject == name:
                    examples = tuple(self._examples[subject, expected])
                    yield Finding(self._place, name, expected, rows, failed, failed <= tolerated * rows, examples)
            if column.nulls is not None:
                nulls = self._nulls[name]
                yield Finding(self._place, name, f"nulls {column.nulls:g}", rows, nulls, nulls <= column.nulls * rows)


def _contradictions(found: Expectations, plan: FeaturePlan) -> Iterator[str]:
    sources = {source.name: source for source in plan.sources}
    for name, events in found.events.items():
        if name not in sources:
            yield f"events.{name}: no source is called so. There are {', '.join(sources)}."
            continue
        known = columns_of(sources[name])
        for column, expected in events.columns.items():
            kind = _kind(known, column)
            if kind is None:
                yield f"events.{name}.columns.{column}: not a column of it. There are {', '.join(known)}."
            elif (expected.is_of_numbers and kind not in ("bigint", "int", "double")) or (
                expected.is_of_texts and kind != "string"
            ):
                yield f"events.{name}.columns.{column}: is {kind}; min, max are of numbers, values, matches of texts."
    served = {feature.name for service in plan.services for feature in service.features}
    for name, expected in found.features.items():
        if name not in served:
            yield f"features.{name}: no feature service has it. There are {', '.join(sorted(served)) or 'none'}."
        elif expected.is_of_texts:
            yield f"features.{name}: features are numbers; min, max and nulls may be expected of them."


def _kind(known: Mapping[str, str], column: str) -> str | None:
    outer, dot, _ = column.partition(".")
    return "string" if column not in known and dot and known.get(outer) == MAP else known.get(column)


def _whole(pattern: str) -> str:
    return f"^(?:{pattern})$"


def _limit(column: pa.ChunkedArray, value: float, inwards: Callable[[float], int]) -> float | pa.Scalar:
    """An integer for integers, which need not have a float64; of the type's own range at most."""
    if not pa.types.is_integer(column.type):
        return value
    beyond = 2 ** (column.type.bit_width - 1)
    return pa.scalar(min(max(inwards(value), -beyond), beyond - 1), column.type)


def _mask(values: Any) -> Mask:
    filled = pc.fill_null(values, False)
    whole = filled.combine_chunks() if isinstance(filled, pa.ChunkedArray) else filled
    mask: Mask = np.asarray(whole).astype(np.bool_)
    return mask
