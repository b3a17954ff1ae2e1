"""A training that ends itself by SIGKILL at a named instant: ``python doomed_towers.py step|rename CHECKPOINT``."""

import os
import signal
import sys
from pathlib import Path

from support.camps import in_blocks, two_camps

from models.two_tower import TowerConfig, Trainer

CONFIG = TowerConfig(dim=16, hidden=16, n_recent=4, trips_per_batch=32, negatives=40, passes=2, least_steps=0, seed=3)


class Doomed(Trainer):
    """Dies in the 27th step: in the third of four blocks of ten batches."""

    steps = 0

    def step(self, batch):
        self.steps += 1
        if self.steps == 27:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(batch)


def doom_renaming() -> None:
    """Die when the third checkpoint is to get its name."""
    rename, times = Path.replace, 0

    def doomed(self: Path, target: Path) -> Path:
        nonlocal times
        times += 1
        if times == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(self, target)

    Path.replace = doomed


if __name__ == "__main__":
    instant, checkpoint = sys.argv[1], Path(sys.argv[2])
    if instant == "rename":
        doom_renaming()
    kind = Doomed if instant == "step" else Trainer
    kind(in_blocks(two_camps(), CONFIG.n_recent), CONFIG, "cpu").fit(checkpoint, saved_every_s=0)
