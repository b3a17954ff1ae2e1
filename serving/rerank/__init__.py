"""The last stage: which items fill the places, in an order that does not show ten times the same thing."""

from serving.rerank.arrange import Arranged, arrange
from serving.rerank.greedy import OfItems, dpp, mmr

__all__ = ["Arranged", "OfItems", "arrange", "dpp", "mmr"]
