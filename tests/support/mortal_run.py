"""``python -m support.mortal_run FOLDER OUT STEPS``: choose and train a transformer, killed after so many steps."""

import os
import signal
import sys
from pathlib import Path

import numpy as np

from models.interactions import Interactions
from models.retrieval.checkpoint import Checkpoint
from models.retrieval.choice import Choice, choose, hold_out
from models.retrieval.neighbours import ItemNeighbours
from models.retrieval.sequence import Sequences, Training
from models.retrieval.transformer import SequenceConfig, Words

SMALL = SequenceConfig(length=6, dim=16, dropout=0.1, batch=16, negatives=20, learning_rate=0.01)


def walks(n_users: int = 60, steps: int = 8, n_items: int = 30) -> Interactions:
    """Users who walk along the items, now and then by two."""
    item = np.cumsum(np.random.default_rng(0).integers(1, 3, (steps, n_users)), 0) % n_items
    user = np.tile(np.arange(n_users), steps).astype(np.int32)
    return Interactions(user, item.ravel().astype(np.int32), np.arange(len(user)), n_users, n_items)


HELD = hold_out(walks(), None, repeats=False)


def chosen(folder: Path | None, until: float = float("inf")) -> Choice:
    """Two settings of one model and one of the transformer, tried on the walks."""
    sequences = Sequences(Words.of([[]] * 30), SMALL, most_epochs=6, every=2, checkpoint=folder)
    settings = [ItemNeighbours(shrink=10), ItemNeighbours(shrink=0), sequences]
    return choose(settings, HELD, False, until, checkpoint=Checkpoint(folder))


def main(folder: Path, out: Path, steps: int) -> None:
    """Write the vectors of what was chosen and has learned everything, unless so many steps come before."""
    taken, plain = 0, Training._step

    def step(self: Training, *given: object) -> float:
        nonlocal taken
        taken += 1
        if taken > steps:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, *given)  # type: ignore[arg-type]

    Training._step = step  # type: ignore[method-assign,assignment]
    scorer = chosen(folder).model.fit(walks())
    np.savez(out, users=scorer.users, items=scorer.items)  # type: ignore[attr-defined]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
