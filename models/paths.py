"""Where training keeps what is not served."""

from dataclasses import dataclass
from pathlib import Path

from headwater.settings import Settings


@dataclass(frozen=True)
class Paths:
    """Where training keeps what is not served."""

    root: Path

    @property
    def retriever(self) -> Path:
        return self.root / "retriever"

    @property
    def catalogue(self) -> Path:
        """Tables of items and users as the last retraining read them, a folder."""
        return self.root / "catalogue"

    @property
    def requests(self) -> Path:
        """Labels and candidates without features, one Parquet file."""
        return self.root / "requests.parquet"

    @property
    def rows(self) -> Path:
        """The same with a feature service's columns, a folder of Parquet files."""
        return self.root / "rows"

    @property
    def tuned(self) -> Path:
        """Settings of the ranker that ``headwater tune`` found, and the features that they are for."""
        return self.root / "tuned.json"

    @property
    def studies(self) -> Path:
        """Trials of all tuning, an SQLite file."""
        return self.root / "tuning.db"

    @property
    def trips(self) -> Path:
        """What the towers learn from, while they do, a folder of Arrow files."""
        return self.root / "trips"

    @property
    def checkpoint(self) -> Path:
        return self.root / "towers.pt"


def paths_of(settings: Settings) -> Paths:
    """Below the state folder."""
    return Paths(settings.training_dir)
