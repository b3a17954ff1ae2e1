"""What the catalogue tells of a product, as numbers that the item tower reads."""

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from models.evaluation.metrics import PAD, Ints
from models.interactions import Items
from models.tower_config import TowerConfig

ITEM_SIDES = ("department", "category", "brand")
HASH_KEYS = ("headwater-hash-1", "headwater-hash-2")

Float32s = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Content:
    """Row i is item i.

    Attributes
    ----------
    rows : (n_items, n_inputs) int32
        Rows of one table of ``n_rows`` that describe the item, ``PAD`` for none: sides, hashes and words side by side.
    n_averaged
        So many of the last columns, the words, are averaged; the others are added up.
    numbers : (n_items, 2 * n_columns) float32
        Standardised, 0 where missing, then 1 where present.
    """

    rows: Ints
    n_rows: int
    n_averaged: int
    numbers: Float32s


def content_of(items: Items, config: TowerConfig) -> Content:
    """Read what ``config.item_inputs`` names besides the own row."""
    tables: list[tuple[Ints, int]] = [(np.zeros((len(items), 0), np.int32), 0)]
    n_averaged, numbers = 0, np.zeros((len(items), 0), np.float32)
    if "sides" in config.item_inputs:
        tables.append(stacked(np.stack([items.codes[name] for name in ITEM_SIDES], 1)))
    if "hashed" in config.item_inputs:
        tables.append((hashed(items.ids.values, config.hash_rows), config.hash_rows))
    if "words" in config.item_inputs:
        tables.append(words(items.text["name"], config.words))
        n_averaged = config.words
    if "numbers" in config.item_inputs:
        numbers = standardised(items.numbers, len(items))
    begins = np.cumsum([0, *(size for _, size in tables)])
    rows = [np.where(rows == PAD, PAD, rows + begin) for (rows, _), begin in zip(tables, begins[:-1], strict=True)]
    return Content(np.concatenate(rows, 1).astype(np.int32), int(begins[-1]), n_averaged, numbers)


def stacked(codes: Ints) -> tuple[Ints, int]:
    """Give every column its own stretch of rows in one table; its length."""
    widths = codes.max(0) + 1 if codes.size else np.zeros(codes.shape[1], int)
    offsets = np.cumsum(widths) - widths
    return (codes + offsets).astype(np.int32), int(widths.sum())


def hashed(ids: npt.NDArray[np.object_], n_rows: int) -> Ints:
    """Two rows for each id (n_items, 2); two ids that share both are one in n_rows squared.

    The hash trick with several hashes: Weinberger et al., ICML 2009; Svenstrup et al., NeurIPS 2017.
    """
    keyed = [pd.util.hash_array(ids, hash_key=key, categorize=False) % n_rows for key in HASH_KEYS]
    return np.asarray(np.stack(keyed, 1), np.int32)


def words(texts: npt.NDArray[np.object_], n_words: int) -> tuple[Ints, int]:
    """Numbers of the first distinct words of each text that another has too (n_items, n_words), padded; how many."""
    held = [list(dict.fromkeys(re.findall(r"\w+", str(text).lower()))) for text in texts]
    counts = Counter(word for each in held for word in each)
    number = {word: at for at, word in enumerate(sorted(word for word, count in counts.items() if count > 1))}
    found = np.full((len(held), n_words), PAD, np.int32)
    for row, each in zip(found, held, strict=True):
        known = [number[word] for word in each if word in number][:n_words]
        row[: len(known)] = known
    return found, len(number)


def standardised(columns: dict[str, npt.NDArray[np.float64]], n_items: int) -> Float32s:
    """Columns of mean 0 and deviation 1 over the items that have a value, then their presence."""
    if not columns:
        return np.zeros((n_items, 0), np.float32)
    values = np.stack([columns[name] for name in sorted(columns)], 1)
    present = np.isfinite(values)
    count = np.maximum(present.sum(0), 1)
    centred = np.where(present, values - np.where(present, values, 0).sum(0) / count, 0)
    deviation = np.sqrt(np.square(centred).sum(0) / count)
    scaled = centred / np.where(deviation > 0, deviation, 1)
    return np.asarray(np.concatenate([scaled, present], 1), np.float32)
