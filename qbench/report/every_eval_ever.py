"""A run as the JSON of every_eval_ever, the shared format for results of evaluations: one document for each model."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from qbench.metrics.catalog import METRICS
from qbench.report.words import HUB, treatment
from qbench.results import digest
from qbench.results.record import Attempt, Record
from qbench.results.run import Run, arm, part

# https://github.com/evaleval/every_eval_ever, eval.schema.json of this version
SCHEMA = "0.2.2"
ANSWERS = ("loss", "kernel", "task")
SHARES = ("error_rate", "flips", "flips/to_wrong", "top1_changed")  # costs between 0 and 1


def documents(run: Run, organization: str, relationship: str = "other") -> dict[str, dict[str, Any]]:
    """Documents by a name for their file: one for each model, trained models for each seed.

    Every cost of quality over the whole data is a result; lower is better in all. `organization` is who measured,
    `relationship` what that is to the model: first_party, third_party, collaborative or other. Arms whose models have
    the same name are told apart by digits behind it.
    """
    models: dict[tuple[str, str], list[Attempt]] = {}
    for cell in run.cells.values():
        what = part(cell.closing.spec, "measurement").get("what")
        if what in ANSWERS and cell.closing.status == "measured":
            models.setdefault((_model_name(cell), arm(cell.closing.spec)), []).append(cell)
    when = _when(run)
    source = {
        "source_name": "qbench",
        "source_type": "evaluation_run",
        "source_organization_name": organization,
        "evaluator_relationship": relationship,
    }
    called = Counter(name for name, _ in models)
    named = {
        name if called[name] == 1 else f"{name}-{digest.of(own)[:8]}": cells for (name, own), cells in models.items()
    }
    return {name: _document(name, cells, source, when) for name, cells in named.items()}


def _document(name: str, cells: Sequence[Attempt], source: Mapping[str, Any], when: datetime) -> dict[str, Any]:
    spec = cells[0].closing.spec
    stamp = f"{when.timestamp():.0f}"
    return {
        "schema_version": SCHEMA,
        "evaluation_id": f"{spec.get('suite', 'qbench')}/{name}/{stamp}",
        "evaluation_timestamp": when.isoformat(),
        "retrieved_timestamp": stamp,
        "source_metadata": dict(source),
        "eval_library": {"name": "qbench", "version": _version()},
        "model_info": {"name": arm(spec), "id": name, "additional_details": _texts(part(spec, "model"))},
        "evaluation_results": [result for cell in cells for result in _results(cell)],
    }


def _results(cell: Attempt) -> Iterator[dict[str, Any]]:
    for record in cell.records:
        if record.slice or record.step is not None:
            continue
        named = any(metric.startswith("task_error/") for metric in record.values)  # of which the error rate is one
        for metric, value in record.values.items():
            if named and metric == "error_rate":
                continue
            known = METRICS.get(metric)
            if known is not None and known.role == "cost":
                yield _result(cell, record, metric, value)


def _result(cell: Attempt, record: Record, metric: str, value: float) -> dict[str, Any]:
    spec = cell.closing.spec
    measurement = part(spec, "measurement")
    data = part(spec, "data")
    treated = treatment(spec)
    bounds = {"score_type": "continuous", "min_score": 0.0, "max_score": 1.0}
    share = metric in SHARES or metric.startswith("task_error/")
    place = [cell.closing.cell, record.site, record.quantizer, metric]
    return {
        "evaluation_result_id": digest.of(place)[:16],
        "evaluation_name": f"{measurement.get('what')}: {treated}",
        "source_data": _source(data, str(measurement.get("what"))),
        "metric_config": {
            "evaluation_description": METRICS[metric].meaning,
            "metric_id": f"qbench.{metric}",
            "metric_name": metric,
            "metric_unit": {"1": "proportion" if share else "ratio"}.get(METRICS[metric].unit, METRICS[metric].unit),
            "lower_is_better": True,
            **(bounds if share else {}),
        },
        "score_details": {
            "score": value,
            "details": _texts(
                {
                    "cell": cell.closing.cell,
                    "seed": spec.get("seed"),
                    "treatment": treated,
                    "quantizer": record.quantizer or None,
                    "scope": record.scope or None,
                    "bits_per_value": record.bits_per_value,
                    "device": spec.get("device") or None,
                    "samples_digest": record.samples or None,
                }
            ),
            **_uncertainty(record, metric),
        },
    }


def _source(data: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Where the data come from: a task's may be a dataset of the Hugging Face hub."""
    name = str(data.get("name", "unknown"))
    on_hub = what == "task" and HUB.fullmatch(name)
    return {
        "dataset_name": name,
        **({"source_type": "hf_dataset", "hf_repo": name} if on_hub else {"source_type": "other"}),
        "additional_details": _texts({"digest": data.get("digest")}),
    }


def _uncertainty(record: Record, metric: str) -> dict[str, Any]:
    if metric not in record.intervals:
        return {"uncertainty": {"num_samples": record.n}} if record.n else {}
    low, high = record.intervals[metric]
    interval = {"lower": low, "upper": high, "confidence_level": 0.95, "method": "over windows or documents"}
    return {"uncertainty": {"confidence_interval": interval, "num_samples": record.n}}


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    """The format allows text only among details; what is unknown is left out."""
    return {name: str(value) for name, value in values.items() if value not in (None, "")}


def _model_name(cell: Attempt) -> str:
    spec = cell.closing.spec
    return (
        f"{arm(spec)}/seed-{spec.get('seed')}"
        if spec.get("training")
        else str(part(spec, "model").get("name", arm(spec)))
    )


def _when(run: Run) -> datetime:
    """When the last session ended or, if it was killed, began; the epoch where no manifest says."""
    text = run.session.get("finished") or run.session.get("started")
    return datetime.fromisoformat(text) if isinstance(text, str) else datetime.fromtimestamp(0, UTC)


def _version() -> str:
    try:
        return version("qbench-suite")
    except PackageNotFoundError:
        return "unknown"
