"""What an audit found, kept in the state folder: ``audit/last.json``, ``audit/headwater_audit.prom`` for Prometheus.

The latter is the text that node_exporter's textfile collector reads; both are replaced whole.
"""

import json
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

from batch.audit import CAUSES, Audit
from headwater.clock import wall_ms
from headwater.files import write_whole
from headwater.settings import Settings


def keep(settings: Settings, found: Audit) -> Path:
    """Write both files; return their folder."""
    folder = settings.state_dir / "audit"
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "last.json", json.dumps({"finished_ms": wall_ms(), **found.as_dict()}, indent=1))
    write_to_textfile(str(folder / "headwater_audit.prom"), gauges(found, wall_ms() / 1000))
    return folder


def gauges(found: Audit, finished_s: float) -> CollectorRegistry:
    """Gauges of one audit."""
    registry = CollectorRegistry()

    def gauge(name: str, told: str, *labels: str) -> Gauge:
        return Gauge(f"headwater_audit_{name}", told, labels, registry=registry)

    gauge("finished_timestamp_seconds", "When the last audit ended.").set(finished_s)
    gauge("vectors", "Served vectors that the last audit compared.").set(found.vectors)
    gauge("unmarked_impressions", "Impressions without marks, which cannot be audited.").set(found.unmarked)
    causes = gauge("mismatched_cells", "Cells served that differ from the archive's, by cause.", "cause")
    for cause in CAUSES:
        causes.labels(cause).set(found.causes.get(cause, 0))
    compared = gauge("compared_cells", "Cells compared, by feature.", "feature")
    in_flight = gauge("in_flight_cells", "Cells served while events of theirs were on their way.", "feature")
    mismatched = gauge("mismatched_feature_cells", "Cells that differ, by feature.", "feature")
    for name, tally in found.by_feature.items():
        compared.labels(name).set(tally.compared)
        in_flight.labels(name).set(tally.in_flight)
        mismatched.labels(name).set(tally.mismatched)
    return registry
