"""Rows of JSON Lines, CSV and Parquet, each with the bytes it was read from."""

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from headwater.errors import DataError

CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Row:
    """``fields`` is None where the bytes are no row; Parquet's rows have no bytes of their own."""

    fields: dict[str, Any] | None
    read_from: bytes | None = None

    def raw(self) -> bytes:
        """Return the original bytes, or the row as JSON where the format has none."""
        return self.read_from if self.read_from is not None else json.dumps(self.fields, default=str).encode()


@dataclass(frozen=True, slots=True)
class RowFile:
    """A file of events, its format told by its suffix."""

    path: Path

    def __post_init__(self) -> None:
        if not self.path.is_file():
            raise DataError(f"{self.path}: no such file. Give the path of a JSON Lines, CSV or Parquet file.")
        if self.path.suffix.lower() not in _READERS:
            raise DataError(
                f"{self.path}: the format of a {self.path.suffix or 'bare'} file is not known. "
                f"Name it with one of {', '.join(_READERS)}."
            )

    def columns(self) -> list[str] | None:
        """Name the columns where the format declares them."""
        if self.path.suffix.lower() == ".parquet":
            return list(_parquet_file(self.path).schema_arrow.names)
        if self.path.suffix.lower() == ".csv":
            with self.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
                return next(csv.reader(file), [])
        return None

    def rows(self) -> Iterator[Row]:
        """Read from the start; blank lines are no rows."""
        return _READERS[self.path.suffix.lower()](self.path)

    def digest_and_lines(self) -> tuple[str, int]:
        """Hash the content, and count what is about its number of rows (a progress bar's total)."""
        digest, lines = hashlib.sha256(), 0
        with self.path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                lines += chunk.count(b"\n")
        if self.path.suffix.lower() == ".parquet":
            lines = _parquet_file(self.path).metadata.num_rows
        return digest.hexdigest()[:16], lines


def _json_lines(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for line in file:
            raw = line.rstrip(b"\r\n")
            if not raw.strip():
                continue
            try:
                fields = json.loads(raw)
            except (ValueError, RecursionError):
                fields = None
            yield Row(fields if isinstance(fields, dict) else None, raw)


class _Remembered:
    """Lines of a file, with those that the CSV reader took for its last row."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = iter(lines)
        self._taken: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self._taken.append(line)
        return line

    def take(self) -> bytes:
        raw = "".join(self._taken).encode("utf-8", "surrogateescape").rstrip(b"\r\n")
        self._taken.clear()
        return raw


def _csv(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = _Remembered(file)
        reader = csv.reader(lines)
        header = next(reader, None)
        lines.take()
        while header is not None:
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error:
                yield Row(None, lines.take())
                continue
            raw = lines.take()
            if values:
                whole = len(values) == len(header) and _is_text(raw)
                yield Row(dict(zip(header, values, strict=True)) if whole else None, raw)


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _parquet(path: Path) -> Iterator[Row]:
    for batch in _parquet_file(path).iter_batches(batch_size=5_000):
        for fields in batch.to_pylist():
            yield Row(fields)


def _parquet_file(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except ValueError as error:  # ArrowInvalid
        raise DataError(f"{path}: not a Parquet file, {error}. Give a file that is one.") from None


_READERS = {".jsonl": _json_lines, ".ndjson": _json_lines, ".json": _json_lines, ".csv": _csv, ".parquet": _parquet}
