"""The SQL that Flink and Spark read alike, and what its columns are.

A projection is ``SELECT columns FROM source [WHERE condition]``. What is allowed is listed, so that a construct whose
meaning differs between the engines (division, concatenation, time functions) is refused by name rather than found out.
"""

from collections.abc import Mapping

import sqlglot
from sqlglot import exp
from sqlglot.errors import ParseError

from headwater.errors import DefinitionError
from headwater.plan import ColumnKind

_ALLOWED: tuple[type[exp.Expression], ...] = (
    exp.Select,
    exp.From,
    exp.Where,
    exp.Table,
    exp.Column,
    exp.Identifier,
    exp.Alias,
    exp.Literal,
    exp.Null,
    exp.Boolean,
    exp.Paren,
    exp.And,
    exp.Or,
    exp.Not,
    exp.Is,
    exp.In,
    exp.Between,
    exp.EQ,
    exp.NEQ,
    exp.GT,
    exp.GTE,
    exp.LT,
    exp.LTE,
    exp.Case,
    exp.If,
    exp.Coalesce,
    exp.Add,
    exp.Sub,
    exp.Mul,
    exp.Neg,
    exp.Abs,
    exp.Cast,
    exp.DataType,
    exp.Bracket,
    exp.Lower,
    exp.Upper,
    exp.Trim,
    exp.Like,
    exp.DPipe,
)
_COMPARISONS = (exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.Between, exp.In)
_ARITHMETIC = (exp.Add, exp.Sub, exp.Mul, exp.Neg, exp.Abs)
_CASTS: Mapping[str, ColumnKind] = {"BIGINT": "int", "INT": "int", "DOUBLE": "fixed", "STRING": "string"}
_TYPES: Mapping[str, ColumnKind] = {
    "BIGINT": "int",
    "INT": "int",
    "SMALLINT": "int",
    "TINYINT": "int",
    "DOUBLE": "fixed",
    "FLOAT": "fixed",
    "TEXT": "string",
    "VARCHAR": "string",
    "STRING": "string",
}


def check_projection(
    view: str, text: str, source: str, columns: Mapping[str, str]
) -> tuple[str, dict[str, ColumnKind]]:
    """Check a projection against the portable subset.

    Parameters
    ----------
    columns
        Name to Spark SQL type of the source's columns, such as ``{"context": "map<string,string>"}``.

    Returns
    -------
    (normalised SQL, kind of each output column in order)

    Raises
    ------
    DefinitionError
        The text does not parse, uses what the engines read differently, or names an unknown column.
    """
    try:
        tree = sqlglot.parse_one(text, read="spark")
    except ParseError as error:
        reason = str(error).splitlines()[0]
        raise DefinitionError(
            f"{view}: the projection does not parse, {reason}. Mend its tag headwater.projection."
        ) from None
    if not isinstance(tree, exp.Select) or tree.args.get("distinct") or tree.args.get("group"):
        raise DefinitionError(f"{view}: the projection {text!r} is not a plain SELECT … FROM {source} [WHERE …].")
    for node in tree.walk():
        if not isinstance(node, _ALLOWED):
            raise DefinitionError(
                f"{view}: {node.sql('spark')!r} in the projection is outside the SQL that Flink and Spark read alike "
                f"({type(node).__name__}). Use columns, literals, map['key'], comparisons, CASE, COALESCE, CAST to "
                "BIGINT, DOUBLE or STRING, + - *, || of strings and AND/OR/NOT, or compute it before the event is sent."
            )
        if isinstance(node, exp.Cast) and node.to.sql("spark").upper() not in _CASTS:
            raise DefinitionError(f"{view}: {node.sql('spark')!r}: cast to BIGINT, INT, DOUBLE or STRING only.")
    tables = [table.name for table in tree.find_all(exp.Table)]
    if tables != [source]:
        raise DefinitionError(f"{view}: the projection reads {tables}, not its stream source {source!r}.")
    for column in tree.find_all(exp.Column):
        if column.name not in columns:
            raise DefinitionError(
                f"{view}: column {column.name!r} is not in source {source!r}, which has {', '.join(columns)}."
            )
    _check_texts(view, tree, columns)
    _check_likes(view, tree)
    _check_operands(view, tree, columns)
    kinds = {item.alias_or_name: _kind(view, item, columns) for item in tree.expressions}
    if "" in kinds or len(kinds) != len(tree.expressions):
        raise DefinitionError(f"{view}: every column of the projection needs a name of its own: add AS name.")
    # This dialect writes CAST as TRY_CAST: a text that is no number is null, not an error that stops a stream for ever.
    return tree.sql("databricks"), kinds


_WHOLE = "^ *[+-]?[0-9]+ *(?![^0-9 ])$"
_NUMBER = "^ *[+-]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][+-]?[0-9]+)? *(?![^0-9 ])$"
"""A text that is a number, and nothing behind it: ``$`` alone lets a newline pass."""


def guard_casts(tree: exp.Expression, columns: Mapping[str, str]) -> exp.Expression:
    """Make a cast that the engines do differently NULL in both, and all others as they were.

    By itself Flink reads the text '1.7' as the integer 1 and 2**31 as an INT of -2**31, where Spark has NULL, and Spark
    reads the text 'inf', where Flink has NULL.

    Parameters
    ----------
    columns
        Name to type of the source's columns.
    """
    for node in reversed(list(tree.find_all(exp.Cast))):
        condition = _castable(node, set(_leaf_kinds(node.this, columns)))
        if condition is not None:
            node.replace(exp.Case(ifs=[exp.If(this=condition, true=node.copy())]))
    return tree


def _castable(node: exp.Cast, kinds: set[ColumnKind]) -> exp.Expression | None:
    to, text = node.to.sql("spark").upper(), "string" in kinds
    given = node.this.copy()
    if to == "STRING":
        return None
    if text:
        return exp.RegexpLike(this=given, expression=exp.Literal.string(_NUMBER if to == "DOUBLE" else _WHOLE))
    if to == "INT":
        low, high = exp.Neg(this=exp.Literal.number(2**31)), exp.Literal.number(2**31 - 1)
        return exp.Between(this=exp.Paren(this=given), low=low, high=high)
    return exp.LTE(this=exp.Abs(this=given), expression=exp.Literal.number("9.2E18")) if "fixed" in kinds else None


def _check_operands(view: str, tree: exp.Expression, columns: Mapping[str, str]) -> None:
    """A text compared with a number, or added to one, is cast unseen, and a text that is no number ends the job."""
    for node in tree.find_all(*_COMPARISONS):
        if len({kind for side in node.iter_expressions() for kind in _families(side, columns)}) > 1:
            raise DefinitionError(
                f"{view}: {node.sql('spark')!r} compares a string, a number or a boolean with another. CAST one side."
            )
    for node in tree.find_all(*_ARITHMETIC):
        if _families(node, columns) != {"number"}:
            raise DefinitionError(f"{view}: {node.sql('spark')!r} counts with a string. CAST it to BIGINT or DOUBLE.")


def _families(node: exp.Expression, columns: Mapping[str, str]) -> set[str]:
    kinds: set[str] = {"string" if kind == "string" else "number" for kind in _leaf_kinds(node, columns)}
    plain = isinstance(node, exp.Boolean) or (
        isinstance(node, exp.Column) and columns.get(node.name, "").upper() == "BOOLEAN"
    )
    return kinds | {"boolean"} if plain else kinds


def _check_likes(view: str, tree: exp.Expression) -> None:
    for node in tree.find_all(exp.Like):
        pattern = node.expression
        if not (isinstance(pattern, exp.Literal) and pattern.is_string) or "\\" in pattern.name:
            raise DefinitionError(
                f"{view}: {node.sql('spark')!r}: the engines escape differently. Give LIKE a text without a backslash."
            )


def _check_texts(view: str, tree: exp.Expression, columns: Mapping[str, str]) -> None:
    """Fractions and booleans are written differently by the engines, so neither becomes a text."""
    for node in tree.find_all(exp.DPipe):
        sides = [set(_leaf_kinds(side, columns)) for side in (node.left, node.right)]
        if any(side != {"string"} for side in sides):
            raise DefinitionError(f"{view}: {node.sql('spark')!r}: || joins strings only. CAST an integer to STRING.")
    for node in tree.find_all(exp.Cast):
        if node.to.sql("spark").upper() != "STRING":
            continue
        if not set(_leaf_kinds(node.this, columns)) <= {"string", "int"}:
            raise DefinitionError(
                f"{view}: {node.sql('spark')!r}: the engines write a fraction differently. CAST an integer."
            )
        if _names_a_boolean(node.this, columns):
            raise DefinitionError(
                f"{view}: {node.sql('spark')!r}: the engines write a boolean differently. Compare it with TRUE instead."
            )


def _names_a_boolean(node: exp.Expression, columns: Mapping[str, str]) -> bool:
    return any(columns.get(column.name) == "boolean" for column in node.find_all(exp.Column)) or bool(
        node.find(exp.Boolean)
    )


def _kind(view: str, item: exp.Expression, columns: Mapping[str, str]) -> ColumnKind:
    """Infer int, fixed or string; ints stay ints only while every part is an int."""
    node = item.this if isinstance(item, exp.Alias) else item
    kinds = set(_leaf_kinds(node, columns))
    if len(kinds) == 1:
        return kinds.pop()
    if kinds == {"int", "fixed"}:
        return "fixed"
    raise DefinitionError(
        f"{view}: the type of {item.sql('spark')!r} is not clear ({', '.join(sorted(kinds)) or 'only NULL'}). "
        "CAST it to BIGINT, DOUBLE or STRING."
    )


def _leaf_kinds(node: exp.Expression, columns: Mapping[str, str]) -> list[ColumnKind]:
    if isinstance(node, exp.Cast):
        return [_CASTS[node.to.sql("spark").upper()]]
    if isinstance(node, exp.Bracket | exp.Lower | exp.Upper | exp.Trim):
        return ["string"]
    if isinstance(node, exp.Literal):
        return ["string" if node.is_string else "int" if node.is_int else "fixed"]
    if isinstance(node, exp.Column):
        kind = _TYPES.get(columns[node.name].upper())
        return [kind] if kind else []
    if isinstance(node, exp.Case):
        results = [branch.args["true"] for branch in node.args["ifs"]]
        return [
            kind
            for result in [*results, node.args.get("default")]
            if result is not None
            for kind in _leaf_kinds(result, columns)
        ]
    return [kind for child in node.iter_expressions() for kind in _leaf_kinds(child, columns)]
