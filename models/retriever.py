"""What retrieval learned, on disk between training the towers and training the ranker."""

import json
import shutil
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headwater.errors import ModelError
from models.encoder import UserEncoder
from models.index import RECALL, ItemIndex, build
from models.interactions import Dataset, Ids, Items

META = "retriever.json"


@dataclass(frozen=True)
class Provenance:
    """Where the towers come from; times are epoch milliseconds."""

    training_start_ms: int
    cutoff_ms: int
    data_hash: str
    n_recent: int
    examples: int


@dataclass(frozen=True)
class Retriever:
    """The towers, the index over their items, and the numbering they were trained with."""

    users: Ids
    items: Items
    encoder: UserEncoder
    index: ItemIndex
    provenance: Provenance

    @classmethod
    def of(
        cls, users: Ids, items: Items, encoder: UserEncoder, provenance: Provenance,
        recall: float = RECALL, memory_bytes: float | None = None,
    ) -> "Retriever":  # fmt: skip
        """Index the towers' items, as :func:`models.index.build` does for a recall and a memory."""
        index = build(encoder.items, recall=recall, memory_bytes=memory_bytes)
        return cls(users, items, encoder, index, provenance)

    def save(self, directory: Path) -> None:
        """Write whole or not at all; what was there is replaced."""
        draft = directory.with_name(f".{directory.name}.partial")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        np.savez(draft / "towers.npz", **self.encoder.arrays())
        np.save(draft / "item_embeddings.npy", self.encoder.items)
        self.index.save(draft / "index.faiss")
        pq.write_table(self.items.table(), draft / "items.parquet")
        pq.write_table(pa.table({"user_id": pa.array(self.users.values, pa.string())}), draft / "users.parquet")
        (draft / META).write_text(json.dumps(asdict(self.provenance)))
        shutil.rmtree(directory, ignore_errors=True)
        draft.rename(directory)

    @classmethod
    def load(cls, directory: Path) -> "Retriever":
        """Read what ``save`` wrote.

        Raises
        ------
        ModelError
            There is no retriever.
        """
        if not (directory / META).is_file():
            raise ModelError(f"{directory}: no retriever there. Train one: headwater train retriever")
        vectors = np.load(directory / "item_embeddings.npy", mmap_mode="r", allow_pickle=False)
        with np.load(directory / "towers.npz", allow_pickle=False) as towers:
            encoder = UserEncoder.from_arrays(vectors, dict(towers))
        held = json.loads((directory / META).read_text())
        return cls(
            users=Ids(pq.read_table(directory / "users.parquet")["user_id"].to_pylist()),
            items=Items.from_table(pq.read_table(directory / "items.parquet")),
            encoder=encoder,
            index=ItemIndex.load(directory / "index.faiss", vectors),
            provenance=Provenance(**{field.name: held[field.name] for field in fields(Provenance)}),
        )


def assemble_retriever(data: Dataset, encoder: UserEncoder, cutoff_ms: int, n_recent: int, examples: int) -> Retriever:
    """Index the towers' items and note where they come from."""
    provenance = Provenance(int(data.bought.at_ms[0]), cutoff_ms, data_hash(data), n_recent, examples)
    return Retriever.of(data.users.ids, data.items, encoder, provenance)


def data_hash(data: Dataset) -> str:
    """Fingerprint of the purchases, hex sha256."""
    digest = sha256()
    for array in (data.bought.user, data.bought.item, data.bought.at_ms):
        digest.update(array.tobytes())
    return digest.hexdigest()
