"""Nearest items by inner product: what kind of index suits a catalogue, and how far it has to look."""

from models.index.building import RECALL, build
from models.index.item_index import ItemIndex

__all__ = ["RECALL", "ItemIndex", "build"]
