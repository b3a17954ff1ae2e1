"""A view's projection as Flink SQL reads it."""

import sqlglot
from sqlglot import exp, generator, tokens
from sqlglot.dialects.dialect import Dialect

from headwater.errors import DefinitionError
from headwater.plan import Source, View
from headwater.registry.projection import guard_casts
from streaming import reading


class Flink(Dialect):  # type: ignore[misc]
    """The projection's portable subset as Flink spells it: backticks, quotes doubled within a text."""

    class Tokenizer(tokens.Tokenizer):  # type: ignore[misc]
        """Backticks quote names."""

        IDENTIFIERS = ["`"]  # noqa: RUF012

    class Generator(generator.Generator):  # type: ignore[misc]
        """STRING is the one type of another name, and a cast that fails gives NULL."""

        TYPE_MAPPING = {  # noqa: RUF012
            **generator.Generator.TYPE_MAPPING,
            exp.DataType.Type.TEXT: "STRING",
            exp.DataType.Type.VARCHAR: "STRING",
        }
        TRANSFORMS = {  # noqa: RUF012
            **generator.Generator.TRANSFORMS,
            # A text that is no number is NULL; as an error it would end the job, again at each restart.
            exp.RegexpLike: lambda self, node: f"REGEXP({self.sql(node, 'this')}, {self.sql(node, 'expression')})",
            exp.Cast: lambda self, node: f"TRY_CAST({self.sql(node, 'this')} AS {self.sql(node, 'to')})",
        }


def projected(view: View, source: Source) -> tuple[dict[str, str], str | None]:
    """Return each column of a view's projection as a Flink expression, and its condition."""
    tree = _entries(view, guard_casts(_projection(view), reading.columns_of(source)))
    columns = {item.alias_or_name: _flink(item.unalias()) for item in tree.expressions}
    where = tree.args.get("where")
    return columns, _flink(where.this) if where else None


def columns_read(view: View) -> set[str]:
    """Columns of its source that a view's projection names; an entry of a map is ``column.key``."""
    return {column.name for column in _entries(view, _projection(view)).find_all(exp.Column)}


def _projection(view: View) -> exp.Expression:
    return sqlglot.parse_one(view.projection, read="spark")


def _entries(view: View, tree: exp.Expression) -> exp.Expression:
    """Make an entry of a map a column of its own: nothing else of the map is carried along."""

    def entry(node: exp.Expression) -> exp.Expression:
        if not isinstance(node, exp.Bracket):
            return node
        (key,) = node.expressions
        if not isinstance(node.this, exp.Column) or not (isinstance(key, exp.Literal) and key.is_string):
            raise DefinitionError(f"{view.name}: {node.sql('spark')} is not map['key']. Write the key as a text.")
        return exp.column(reading.entry(node.this.name, key.name), quoted=True)

    return tree.transform(entry)


def _flink(node: exp.Expression) -> str:
    return str(node.sql(dialect=Flink, identify=True))
