"""Feast's offline store on Spark: ``type: batch.offline_store.HeadwaterOfflineStore``.

Windowed views are computed from the archive, ready-made ones read from their Parquet files, request-time ones run by
the code that serving runs. Exactly one row comes back for each row asked, whatever the keys, ties and duplicates.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from feast import FeatureView, RepoConfig
from feast.data_source import DataSource
from feast.infra.offline_stores.file_source import FileSource
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.repo_config import FeastConfigBaseModel
from numpy.typing import NDArray

from batch.labels import AT, EVENT_TIMESTAMP, number_labels
from batch.point_in_time import column_name, floats, joined_table
from batch.session import read_parquet, spark_session
from headwater import assemble
from headwater.errors import DataError
from headwater.plan import FeaturePlan, OnDemandView
from headwater.registry.manifest import load_plan
from headwater.settings import Settings, get_settings

Refs = Sequence[tuple[str, str]]


class HeadwaterOfflineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc]  # feast is untyped
    """``as_known`` leaves out what arrived after a row's instant; Feast's own stores let it in."""

    type: Literal["batch.offline_store.HeadwaterOfflineStore"] = "batch.offline_store.HeadwaterOfflineStore"
    as_known: bool = True


class HeadwaterRetrievalJob(RetrievalJob):  # type: ignore[misc]  # feast is untyped
    """Computed when its result is asked for; request-time features are already in it."""

    def __init__(
        self,
        compute: Callable[[], pa.Table],
        full_feature_names: bool = False,
        metadata: RetrievalMetadata | None = None,
    ) -> None:
        self._compute = compute
        self._full_feature_names = full_feature_names
        self._metadata = metadata

    @property
    def full_feature_names(self) -> bool:
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[Any]:
        """None are left to Feast, which would rebuild their functions from pickles."""
        return []

    @property
    def metadata(self) -> RetrievalMetadata | None:
        return self._metadata

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        return self._compute()

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        frame: pd.DataFrame = self._compute().to_pandas()
        return frame


class HeadwaterOfflineStore(OfflineStore):  # type: ignore[misc]  # feast is untyped
    """Point-in-time joins as :mod:`batch.point_in_time` makes them."""

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | str | None,
        registry: Any,
        project: str,
        full_feature_names: bool = False,
        **kwargs: Any,
    ) -> HeadwaterRetrievalJob:
        """Join the entity table with the features named; instants without a zone are UTC, as Feast reads them.

        Raises
        ------
        DataError
            The entity table is not a data frame, or lacks ``event_timestamp`` or a join key.
        """
        if not isinstance(entity_df, pd.DataFrame):
            raise DataError(f"entity_df: {type(entity_df).__name__} is not a pandas DataFrame. Pass one.")
        settings, plan = _of_repo(config)
        labels = pa.Table.from_pandas(entity_df, preserve_index=False)
        refs = [(view, feature) for view, _, feature in (ref.partition(":") for ref in feature_refs)]

        def compute() -> pa.Table:
            return _historical(settings, plan, labels, refs, full_feature_names, config.offline_store.as_known)

        instants = pd.to_datetime(entity_df[EVENT_TIMESTAMP], utc=True) if EVENT_TIMESTAMP in entity_df else None
        bounds = (None, None) if instants is None or instants.empty else (instants.min(), instants.max())
        keys = [name for name in labels.column_names if name != EVENT_TIMESTAMP]
        return HeadwaterRetrievalJob(compute, full_feature_names, RetrievalMetadata(feature_refs, keys, *bounds))

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> HeadwaterRetrievalJob:
        """Newest row of each entity: by event time, created time, then the greater values, column by column."""
        times = [timestamp_field, *([created_timestamp_column] if created_timestamp_column else [])]
        order = ", ".join(f"`{name}` desc" for name in (*times, *feature_name_columns))
        keys = ", ".join(f"`{key}`" for key in join_key_columns)

        def compute() -> pa.Table:
            rows = _rows(config, data_source, join_key_columns, feature_name_columns, times)
            ranked = rows.where(_between(timestamp_field, start_date, end_date)).selectExpr(
                "*", f"row_number() over (partition by {keys} order by {order}) AS _place"
            )
            return ranked.where("_place = 1").drop("_place").toArrow()

        return HeadwaterRetrievalJob(compute)

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> HeadwaterRetrievalJob:
        """All rows of a period."""
        times = [timestamp_field, *([created_timestamp_column] if created_timestamp_column else [])]

        def compute() -> pa.Table:
            rows = _rows(config, data_source, join_key_columns, feature_name_columns, times)
            return rows.where(_between(timestamp_field, start_date, end_date)).toArrow()

        return HeadwaterRetrievalJob(compute)


def _of_repo(config: RepoConfig) -> tuple[Settings, FeaturePlan]:
    repo = Path(config.repo_path or ".")
    return get_settings().model_copy(update={"repo": repo}), load_plan(repo)


def _historical(
    settings: Settings, plan: FeaturePlan, labels: pa.Table, refs: Refs, full_names: bool, known: bool
) -> pa.Table:
    """Columns of the entity table, then the features in the order asked."""
    wanted: dict[str, list[str]] = {}
    for name, feature in refs:
        view = plan.view(name)
        for stored, column in view.inputs if isinstance(view, OnDemandView) else ((name, feature),):
            if column not in wanted.setdefault(stored, []):
                wanted[stored].append(column)
    keys = {key for name in wanted for key in getattr(plan.view(name), "join_keys", ())}
    with tempfile.TemporaryDirectory() as folder:
        numbered = number_labels(labels, sorted(keys), Path(folder) / "labels.parquet", naive_is_utc=True)
        spark = spark_session(settings)
        joined = joined_table(spark, settings, plan, numbered, wanted, known)
    columns = {name: joined[name] for name in numbered.schema.names}
    computed: dict[str, Mapping[str, NDArray[Any]]] = {}
    for name, feature in refs:
        view = plan.view(name)
        if isinstance(view, OnDemandView) and name not in computed:
            computed[name] = _on_demand(plan, view, joined)
        values = computed[name][feature] if name in computed else joined[column_name(name, feature)]
        columns[column_name(name, feature) if full_names else feature] = values
    return pa.table(columns)


def _on_demand(plan: FeaturePlan, view: OnDemandView, joined: pa.Table) -> Mapping[str, NDArray[Any]]:
    stored = {
        (name, feature): assemble.fill_default(plan, name, feature, floats(joined[column_name(name, feature)]))
        for name, feature in view.inputs
    }
    request = {name: np.asarray(joined[name]) for name in view.request if name in joined.column_names}
    return assemble.on_demand(plan, view, stored, {**request, assemble.REQUEST_TIME: joined[AT].to_numpy()})


def _rows(
    config: RepoConfig, source: DataSource, keys: Sequence[str], features: Sequence[str], times: Sequence[str]
) -> Any:
    """DataFrame of a Parquet source's columns."""
    if not isinstance(source, FileSource):
        raise DataError(
            f"{source.name}: a {type(source).__name__} cannot be read. Give the view a FileSource of Parquet."
        )
    settings, _ = _of_repo(config)
    rows = read_parquet(spark_session(settings), str(settings.repo / source.path))
    missing = [name for name in (*keys, *features, *times) if name not in rows.columns]
    if missing:
        raise DataError(
            f"{source.name}: no column {', '.join(missing)} in {source.path}. A windowed view is not pulled from a "
            "file: run headwater backfill --materialize."
        )
    return rows.selectExpr(*(f"`{name}`" for name in (*keys, *features, *times)))


def _between(field: str, start: datetime | None, end: datetime | None) -> str:
    """SQL condition start <= field <= end, to the microsecond."""
    conditions = [
        f"`{field}` {operator} TIMESTAMP'{pd.Timestamp(instant).tz_convert('UTC') if instant.tzinfo else instant}'"
        for operator, instant in ((">=", start), ("<=", end))
        if instant is not None
    ]
    return " AND ".join(conditions) or "true"
