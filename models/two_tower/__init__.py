"""Two-tower retrieval: a user's state and a product as unit vectors whose product tells what is bought next.

With :mod:`models.retrieval.sequence` the only modules that import torch.
"""

from models.tower_config import TowerConfig
from models.two_tower.trainer import Trainer, pick_device

__all__ = ["TowerConfig", "Trainer", "pick_device"]
