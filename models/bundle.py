"""One directory, one version of all that is learned: published whole, refused whole. Nothing in it is pickled."""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import file_digest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from headwater.errors import ModelError
from headwater.log import get_logger
from headwater.online.names import Names
from models import bm25, calibration
from models.bm25 import WordIndex, index_words
from models.calibration import AnyCalibrator
from models.catalogue import ITEM_ID, Catalogue, Column, Numbering, blobs, map_items, texts, write_items
from models.encoder import UserEncoder
from models.heads import Head
from models.index import ItemIndex
from models.ranker import Ranker
from models.side_tables import NO_TABLES, SideTables
from models.trends import Ints, best_first

log = get_logger("models")
FORMAT, KNOWN = 2, (1, 2)
"""Of what is written, and what is read: bundles of format 1 have their items in ``items.parquet``."""
META = "bundle.json"
FILES = (
    "towers.npz",
    "item_embeddings.npy",
    "index.faiss",
    "users.parquet",
    "ranker.txt",
    "calibrator.npz",
    "popularity.npy",
    "trending.npy",
)
ITEMS, ITEMS_BEFORE = "items.arrow", "items.parquet"
_OTHER = re.compile(r"ranker\.([a-z][a-z0-9_]*)\.txt")
CHOOSE = "Choose another bundle or train one: headwater train."
Float32s = npt.NDArray[np.float32]


class Trained(BaseModel):
    """Where a bundle comes from; times are epoch milliseconds."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    created_ms: int
    service: str
    """Feature service whose columns the ranker reads."""
    feature_schema_hash: str
    feature_names: tuple[str, ...]
    feature_hashes: dict[str, str] = {}
    """Of what each feature means, by name; bundles of before have none."""
    training_start_ms: int
    training_end_ms: int
    learned_until_ms: int | None = None
    """Instant of the newest request that the ranker learned from; bundles of before have none."""
    data_hash: str
    metrics: dict[str, float] = {}
    objective: str = "purchase"
    """What ``ranker.txt`` learned; the others are in files of their names."""
    parent: str | None = None
    """Version that was champion when this one was trained."""
    code_version: str | None = None
    """Of the code that trained it (:func:`models.lineage.code_version`); bundles of before have none."""


class Meta(Trained):
    """The file ``bundle.json``."""

    format_version: int = FORMAT
    version: str
    files: dict[str, str]
    """Hex sha256 of every other file."""


@dataclass(frozen=True)
class Parts:
    """What training hands over.

    Attributes
    ----------
    index
        Of the encoder's items.
    items
        One row per dense item: ``item_id`` and text columns.
    users : (n_users,)
        Ids in dense order.
    popularity, trending : (n_items,)
        Higher is more popular.
    others
        Heads of the other objectives.
    """

    encoder: UserEncoder
    index: ItemIndex
    items: pa.Table
    users: Sequence[str]
    ranker: Ranker
    calibrator: AnyCalibrator
    popularity: npt.NDArray[Any]
    trending: npt.NDArray[Any]
    others: Sequence[Head] = ()
    tables: SideTables = NO_TABLES


@dataclass(frozen=True)
class Bundle:
    """One loaded version."""

    meta: Meta
    items: Catalogue
    users: Numbering
    index: ItemIndex
    encoder: UserEncoder
    ranker: Ranker
    calibrator: AnyCalibrator
    popularity: Float32s
    trending: Float32s
    words: WordIndex
    others: tuple[Head, ...] = ()
    tables: SideTables = NO_TABLES

    @property
    def version(self) -> str:
        return self.meta.version

    @property
    def heads(self) -> tuple[Head, ...]:
        """All heads, the main one first."""
        return (Head(self.meta.objective, self.ranker, self.calibrator), *self.others)

    @cached_property
    def popular(self) -> Ints:
        """Items that anyone bought, best first."""
        return best_first(self.popularity)

    @property
    def vectors(self) -> Float32s:
        """Unit vectors of the items (n_items, dim), mapped from the file."""
        return self.items.vectors


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def write_bundle(directory: Path, trained: Trained, parts: Parts) -> Meta:
    """Publish a bundle under the version that is the directory's name: it is there whole and read back, or not at all.

    Raises
    ------
    ModelError
        There is such a version already, or its parts do not fit each other.
    """
    if directory.exists():
        raise ModelError(f"bundle {directory.name}: already written, a version never changes. Choose another version.")
    draft = directory.with_name(f".{directory.name}.{os.getpid()}.partial")
    draft.mkdir(parents=True)
    try:
        _write_files(draft, parts)
        others = [file for head in parts.others for file in _files_of(head.name)]
        names = [*FILES, ITEMS, *bm25.FILES, *others, *parts.tables.save(draft)]
        files = {name: sha256_of(draft / name) for name in names}
        meta = Meta(**trained.model_dump(), version=directory.name, files=files)
        (draft / META).write_text(meta.model_dump_json(indent=2) + "\n")
        load_bundle(draft)
        draft.rename(directory)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return meta


def load_bundle(
    path: Path, expected_schema_hash: str | None = None, applied: Mapping[str, str] | None = None,
    digest_of: Callable[[Path], str] = sha256_of,
) -> Bundle:  # fmt: skip
    """Load a bundle after ``check_bundle``; imports no trainer.

    Raises
    ------
    ModelError
        As ``check_bundle``, or the parts do not fit each other.
    """
    meta = check_bundle(path, expected_schema_hash, applied, digest_of)
    mapped = np.load(path / "item_embeddings.npy", mmap_mode="r", allow_pickle=False)
    vectors = np.asarray(mapped)  # as an array like others: rows of numpy's own kind for files take twice as long
    table = read_items(path, meta)
    columns = {name: Column.of(table[name]) for name in table.column_names if name != ITEM_ID}
    items = Catalogue(Names.of(blobs(table[ITEM_ID])), vectors, columns)
    popularity = np.load(path / "popularity.npy", allow_pickle=False)
    bundle = Bundle(
        meta=meta,
        items=items,
        users=Numbering(Names.of(blobs(pq.read_table(path / "users.parquet")["user_id"]))),
        index=ItemIndex.load(path / "index.faiss", vectors),
        encoder=UserEncoder.from_arrays(vectors, _arrays(path / "towers.npz")),
        ranker=Ranker.from_text(path / "ranker.txt"),
        calibrator=calibration.from_arrays(_arrays(path / "calibrator.npz")),
        popularity=popularity,
        trending=np.load(path / "trending.npy", allow_pickle=False),
        words=_words(path, meta, items),
        others=tuple(_head(path, found[1]) for found in map(_OTHER.fullmatch, meta.files) if found),
        tables=SideTables.load(path, meta.files, popularity),
    )
    _require_fit(bundle)
    return bundle


def check_bundle(
    path: Path, expected_schema_hash: str | None = None, applied: Mapping[str, str] | None = None,
    digest_of: Callable[[Path], str] = sha256_of,
) -> Meta:  # fmt: skip
    """Read ``bundle.json`` and hold every file to its hash.

    Parameters
    ----------
    applied
        Hashes of the applied service's features, by which a refusal names those that differ.
    digest_of
        Tells a file's hash; by default it is computed.

    Raises
    ------
    ModelError
        The bundle is incomplete, altered, of an unknown format, or was trained on other features than are applied.
    """
    meta = _meta(path)
    if expected_schema_hash is not None and meta.feature_schema_hash != expected_schema_hash:
        raise ModelError(
            f"bundle {meta.version}: trained on feature schema {meta.feature_schema_hash} of service {meta.service}, "
            f"but {expected_schema_hash} is applied{_differing(meta, applied)}. Train anew, or apply the definitions "
            "it was trained on."
        )
    for name in dict.fromkeys([*FILES, _items_file(meta), *meta.files]):
        if not (path / name).is_file():
            raise ModelError(f"bundle {meta.version}: {name} is missing. {CHOOSE}")
        if meta.files.get(name) != digest_of(path / name):
            raise ModelError(f"bundle {meta.version}: {name} was altered, its sha256 is another. {CHOOSE}")
    return meta


def _differing(meta: Meta, applied: Mapping[str, str] | None) -> str:
    if applied is None:
        return ""
    gone = [name for name in meta.feature_names if name not in applied]
    new = [name for name in applied if name not in meta.feature_names]
    other = [name for name, held in meta.feature_hashes.items() if applied.get(name, held) != held]
    told = [f"{', '.join(names)} {what}" for names, what in (
        (gone, "no longer there"), (new, "not there when it was trained"), (other, "defined otherwise"),
    ) if names]  # fmt: skip
    return f": {'; '.join(told)}" if told else ""


def read_items(path: Path, meta: Meta | None = None) -> pa.Table:
    """``item_id`` and attributes of a bundle's items, mapped; from the file that its description names."""
    name = _items_file(meta or _meta(path))
    if name == ITEMS:
        return map_items(path / name)
    return pq.read_table(path / name, use_threads=False)  # beside requests, as this thread


def _items_file(meta: Meta) -> str:
    return ITEMS_BEFORE if ITEMS_BEFORE in meta.files else ITEMS


def _meta(path: Path) -> Meta:
    file = path / META
    try:
        held = json.loads(file.read_text())
        found = held.get("format_version") if isinstance(held, dict) else None
        if found not in KNOWN:
            raise ModelError(f"bundle {path.name}: format version {found}, {FORMAT} is known. {CHOOSE}")
        return Meta.model_validate(held)
    except FileNotFoundError:
        raise ModelError(f"bundle {path.name}: {META} is missing. {CHOOSE}") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise ModelError(f"bundle {path.name}: {META}: {first['loc'][0]}: {first['msg'].lower()}. {CHOOSE}") from None
    except ValueError as error:
        raise ModelError(f"bundle {path.name}: {META} is not JSON, {error}. {CHOOSE}") from None


def _write_files(draft: Path, parts: Parts) -> None:
    np.savez(draft / "towers.npz", **parts.encoder.arrays())
    np.save(draft / "item_embeddings.npy", np.ascontiguousarray(parts.encoder.items, np.float32))
    parts.index.save(draft / "index.faiss")
    write_items(parts.items, draft / ITEMS)
    pq.write_table(pa.table({"user_id": pa.array(list(parts.users), pa.string())}), draft / "users.parquet")
    (draft / "ranker.txt").write_text(parts.ranker.to_text())
    np.savez(draft / "calibrator.npz", **parts.calibrator.arrays())
    for head in parts.others:
        trees, calibrator = _files_of(head.name)
        (draft / trees).write_text(head.ranker.to_text())
        np.savez(draft / calibrator, **head.calibrator.arrays())
    index_words(parts.items.num_rows, _text(parts.items)).save(draft)
    np.save(draft / "popularity.npy", np.asarray(parts.popularity, np.float32))
    np.save(draft / "trending.npy", np.asarray(parts.trending, np.float32))


def _require_fit(bundle: Bundle) -> None:
    sizes = {
        "item_embeddings.npy": len(bundle.vectors),
        "index.faiss": len(bundle.index),
        "popularity.npy": len(bundle.popularity),
        "trending.npy": len(bundle.trending),
        **bundle.tables.sizes(),
    }
    for name, size in sizes.items():
        if size != len(bundle.items):
            raise ModelError(f"bundle {bundle.version}: {name} is of {size} items, not {len(bundle.items)}. {CHOOSE}")
    if len(bundle.encoder.user) != len(bundle.users) + 1:
        rows = len(bundle.encoder.user) - 1
        raise ModelError(f"bundle {bundle.version}: towers.npz is of {rows} users, not {len(bundle.users)}. {CHOOSE}")
    for file, ranker in (("ranker.txt", bundle.ranker), *((_files_of(it.name)[0], it.ranker) for it in bundle.others)):
        if ranker.feature_names != bundle.meta.feature_names:
            raise ModelError(
                f"bundle {bundle.version}: {file} reads {', '.join(ranker.feature_names)}, "
                f"not {', '.join(bundle.meta.feature_names)}. {CHOOSE}"
            )


def _words(path: Path, meta: Meta, items: Catalogue) -> WordIndex:
    """Map the index of words; a bundle of before has none, so that it is made anew at each start."""
    if bm25.POSTINGS in meta.files:
        return WordIndex.load(path, len(items))
    log.info("words_indexed_at_load", bundle=meta.version, items=len(items))
    return index_words(len(items), items.text)


def _text(items: pa.Table) -> Mapping[str, Any]:
    """The attributes, as a loaded bundle has them."""
    return {name: texts(items[name]) for name in items.column_names if name != ITEM_ID}


def _files_of(objective: str) -> tuple[str, str]:
    """Names of another head's trees and calibration."""
    return f"ranker.{objective}.txt", f"calibrator.{objective}.npz"


def _head(path: Path, objective: str) -> Head:
    trees, calibrator = _files_of(objective)
    return Head(objective, Ranker.from_text(path / trees), calibration.from_arrays(_arrays(path / calibrator)))


def _arrays(path: Path) -> Mapping[str, npt.NDArray[Any]]:
    with np.load(path, allow_pickle=False) as held:
        return dict(held)
