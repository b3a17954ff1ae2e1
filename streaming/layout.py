"""What decides whether one program reads the state that another has left.

Flink finds an operator's state by its place in the job's graph and reads it where the types of its columns are the
same; the texts of expressions play no part. A layout holds all that decides the two, so any two programs of one layout
read each other's checkpoints, whatever their views. It has room to spare, so that a usual new view fits in.
"""

from collections.abc import Iterable

from headwater.plan import FeaturePlan, Frozen, Table

VERSION = 2
"""To be raised where the graph changes, or where an older version's state would not be what this one folds."""
KINDS = ("fixed", "last", "distinct")
"""Folding operators; all lists in total order are gathered by one and cut at the sink."""
ROOMY = ("count", "max", "min", "sum")
"""Partials that every layout has room for; squares cost decimals, so they are there only where a view needs them."""
LEAST = 2


class Topic(Frozen):
    """A topic that is read, and which operators fold it."""

    topic: str
    kinds: tuple[str, ...]


class Layout(Frozen):
    """Topics in order, columns of the folds, and every table there has been: its place is its number in the state."""

    version: int = VERSION
    topics: tuple[Topic, ...]
    n_keys: int
    partials: tuple[str, ...]
    tables: tuple[str, ...]

    @property
    def n_values(self) -> int:
        """Number of values that travel with an event."""
        return 1 + max(int(name.rpartition("_")[2]) for name in self.partials)

    def with_tables(self, tables: Iterable[str]) -> "Layout":
        """Number the tables that have none yet; none ever loses its own."""
        new = [table for table in tables if table not in self.tables]
        return self.model_copy(update={"tables": (*self.tables, *new)})


def layout_of(plan: FeaturePlan) -> Layout:
    """Lay a plan out afresh."""
    tables = [(view, table) for view in plan.views for table in view.tables]
    partials = [partial for _, table in tables for partial in table.partials]
    width = _roomy(max((len(value_columns(table)) for _, table in tables), default=1))
    return Layout(
        topics=tuple(_topic(plan, name) for name in _sources_read(plan)),
        n_keys=_roomy(max((len(view.join_keys) for view, _ in tables), default=1)),
        partials=tuple(
            f"{kind}_{at}" for kind in sorted({*ROOMY, *(partial.kind for partial in partials)}) for at in range(width)
        ),
        tables=tuple(table.id for _, table in tables),
    )


def why_not(kept: Layout, needed: Layout) -> str | None:
    """Say why a program that needs the one layout cannot take over state of the other; ``None`` where it can."""
    if kept.version != needed.version:
        return "the checkpoint is of another version of Headwater"
    held, wanted = ({topic.topic: topic for topic in layout.topics} for layout in (kept, needed))
    if different := sorted(held.keys() ^ wanted.keys()):
        return f"topic {different[0]} is {'no longer' if different[0] in held else 'newly'} read"
    for name, topic in wanted.items():
        if new := set(topic.kinds) - set(held[name].kinds):
            return f"topic {name} is newly folded into {' and '.join(map(_TOLD.__getitem__, sorted(new)))}"
    if needed.n_keys > kept.n_keys:
        return f"a view has more than {kept.n_keys} keys, for which the state has no room"
    if new := set(needed.partials) - set(kept.partials):
        return f"the state has no room for {', '.join(sorted(new))}"
    return None


def value_columns(table: Table) -> tuple[str, ...]:
    """Projected columns whose numbers a table folds; the i-th travels as ``v<i>``."""
    return tuple(dict.fromkeys(partial.column for partial in table.partials if partial.column is not None))


def folded_as(table: Table) -> str:
    """Return the operator that folds a table."""
    return table.kind if table.kind in ("fixed", "distinct") else "last"


_TOLD = {"fixed": "numbers", "last": "lists", "distinct": "distinct counts"}


def _sources_read(plan: FeaturePlan) -> list[str]:
    read = {view.source for view in plan.views if view.tables}
    return [source.name for source in plan.sources if source.name in read]


def _topic(plan: FeaturePlan, name: str) -> Topic:
    folded = {folded_as(table) for view in plan.views if view.source == name for table in view.tables}
    return Topic(topic=plan.source(name).topic, kinds=tuple(kind for kind in KINDS if kind in folded))


def _roomy(n: int) -> int:
    """Round up to a power of two."""
    return max(LEAST, 1 << (n - 1).bit_length())
