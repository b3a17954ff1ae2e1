"""What people may change while the server answers: surfaces, weights of objectives, variants.

The three files are read as one, so that a reply never follows half of a change, and held to each other.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from headwater.declared import held_to
from headwater.errors import ConfigError
from models import objectives, variants
from models.objectives import load_objectives
from models.variants import CHAMPION, Experiment, Variant, load_experiment
from serving import surfaces
from serving.ports import Bundle
from serving.search import SOURCES
from serving.shadow import Shadow
from serving.surfaces import SEARCH, Surface, Surfaces, load_surfaces

FILES = (surfaces.FILE, objectives.FILE, variants.FILE)
Weights = Mapping[str, Mapping[str, float]]
"""By surface and objective."""
Stamps = tuple[tuple[int, int] | None, ...]


@dataclass(frozen=True, slots=True)
class Tuned:
    """What one variant's lists are made by, beside its bundle.

    ``degraded`` is named in every reply; ``shadow`` scores what is shown, unseen.
    """

    surfaces: Surfaces
    weights: Weights
    variant: str = CHAMPION
    experiment: str = ""
    degraded: tuple[str, ...] = ()
    shadow: Shadow | None = None

    def require(self, bundle: Bundle) -> None:
        """Hold it to what a bundle has.

        Raises
        ------
        ConfigError
            A surface names a source that there is not.
        """
        for surface, wanted in self.surfaces.surfaces.items():
            known = SOURCES if surface == SEARCH else tuple(bundle.sources)
            for source in wanted.quotas(newcomer=True):
                if source not in known:
                    raise ConfigError(
                        f"surfaces.{surface}.sources: {source!r} is unknown. Choose from {', '.join(known)}."
                    )


@dataclass(frozen=True)
class Tuning:
    """All three files."""

    surfaces: Surfaces
    weights: Weights
    experiment: Experiment
    variants: Mapping[str, Tuned] = field(init=False)
    """In the file's order; the control first."""

    def __post_init__(self) -> None:
        _known(self.weights, self.surfaces, f"{objectives.FILE}: weights")
        tuned = {name: self._tuned(name, variant) for name, variant in self.experiment.variants.items()}
        object.__setattr__(self, "variants", tuned)

    @property
    def control(self) -> Tuned:
        """What the files say to those who see no other variant."""
        return self.variants[self.experiment.control]

    def _tuned(self, name: str, variant: Variant) -> Tuned:
        where = f"{variants.FILE}: variants.{name}"
        _known(variant.surfaces, self.surfaces, f"{where}.surfaces")
        _known(variant.weights, self.surfaces, f"{where}.weights")
        changed = {
            surface: held_to(self.surfaces.surfaces[surface].model_dump() | fields, Surface, f"{where}.{surface}")
            for surface, fields in variant.surfaces.items()
        }
        merged = self.surfaces.model_copy(update={"surfaces": {**self.surfaces.surfaces, **changed}})
        return Tuned(merged, {**self.weights, **variant.weights}, name, self.experiment.experiment)


def read_tuning(repo: Path) -> Tuning:
    """Read a repository's files.

    Raises
    ------
    ConfigError
        One is not TOML, or a field is unknown, out of bounds or contradicts another, of any of them.
    """
    declared, experiment = load_objectives(repo), load_experiment(repo)
    for name, variant in experiment.variants.items():
        for surface, weights in variant.weights.items():
            if unknown := sorted(set(weights) - set(declared.objectives)):
                raise ConfigError(
                    f"{variants.FILE}: variants.{name}.weights.{surface}: {unknown[0]!r} is no objective. "
                    f"Choose from {', '.join(declared.objectives)}."
                )
    return Tuning(load_surfaces(repo), declared.weights, experiment)


def stamps(repo: Path) -> Stamps:
    """What tells that a file has changed: time of change in ns and size, ``None`` where there is none."""
    return tuple(_stamp(repo / name) for name in FILES)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        held = path.stat()
    except OSError:
        return None
    return held.st_mtime_ns, held.st_size


def _known(named: Mapping[str, object], held: Surfaces, where: str) -> None:
    for surface in named:
        if surface not in held.surfaces:
            raise ConfigError(f"{where}.{surface}: no such surface. Choose from {', '.join(held.surfaces)}.")
