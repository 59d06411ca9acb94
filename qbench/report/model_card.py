"""A run as the model card of the Hugging Face hub: `model-index`, `.eval_results`, and a table of what is recovered."""

import re
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from statistics import fmean
from typing import Any

import yaml

from qbench.metrics.catalog import METRICS
from qbench.report.words import HUB, UNQUANTIZED, number, treatment
from qbench.results import digest
from qbench.results.record import DIGITS, Attempt, Record
from qbench.results.run import Run, arm, part

PIPELINES: Mapping[str, str] = {
    "causal-lm": "text-generation",
    "masked-lm": "fill-mask",
    "image-classification": "image-classification",
}
SHOWN = ("loss", "loss_increase", "kld", "perplexity", "error_rate")  # of a treatment, in the model index
ACCURACY = ("task_error/acc", "task_error/acc_norm", "task_error/exact_match", "error_rate")
HEAD = ("measured", "bits per value", "loss", "loss increase, 95 %", "KL divergence", "accuracy", "recovery")

Found = tuple[Mapping[str, Any], list[Record]]  # the spec of one question to a model, and its answer for each seed


def card(run: Run) -> str:
    """The front matter with every model's results, then a table for each: what is recovered of its accuracy."""
    models = _models(run)
    index = [{"name": name, "results": list(_results(found))} for name, found in models.items()]
    front = yaml.safe_dump({"model-index": index}, sort_keys=False, allow_unicode=True)
    tables = [f"## {_inert(name)}\n\n{_table(found)}" for name, found in models.items()]
    about = (
        "Measured with qbench. Recovery is the accuracy that is left, in percent of the unquantized model's; loss in "
        "nats per token. Lower loss and divergence are better."
    )
    return f"---\n{front}---\n\n# Evaluation\n\n{about}\n\n" + "\n".join(tables)


def eval_results(run: Run) -> str:
    """The file for `.eval_results/`: accuracies on datasets of the hub, empty where a run has none."""
    entries: list[dict[str, Any]] = []
    for found in _models(run).values():
        for spec, records in found.values():
            dataset = str(part(spec, "data").get("name", ""))
            metric = next((name for name in ACCURACY if name in records[0].values), None)
            task = part(spec, "measurement", "options").get("name")
            if task and metric and HUB.fullmatch(dataset):
                value = 1 - fmean(record.values[metric] for record in records)
                told = (arm(spec), metric.removeprefix("task_error/"), f"{records[0].n} documents")
                about = f"{', '.join(told)}; {spec.get('runtime', 'qbench')}"
                entries.append(
                    {"dataset": {"id": dataset, "task_id": str(task)}, "value": round(value, DIGITS), "notes": about}
                )
    return yaml.safe_dump(entries, sort_keys=False, allow_unicode=True) if entries else ""


def _models(run: Run) -> dict[str, dict[tuple[str, str], Found]]:
    """The answers of each model by question, kernels and tasks included, over the whole data."""
    models: dict[str, dict[tuple[str, str], Found]] = {}
    for cell in run.cells.values():
        for record in _whole(cell):
            found = models.setdefault(arm(cell.closing.spec), {})
            _, records = found.setdefault((cell.closing.question, record.site), (cell.closing.spec, []))
            records.append(record)
    return models


def _whole(cell: Attempt) -> Iterator[Record]:
    what = part(cell.closing.spec, "measurement").get("what")
    if what in ("loss", "kernel", "task") and cell.closing.status == "measured":
        yield from (record for record in cell.records if not record.slice and record.step is None)


def _results(found: Mapping[Any, Found]) -> Iterator[dict[str, Any]]:
    for spec, records in found.values():
        name = str(part(spec, "data").get("name", "unknown"))
        treated = treatment(spec)
        named = _of_tasks(records)  # of which the error rate is one
        shown = [metric for metric in (named or SHOWN) if all(metric in one.values for one in records)]
        if shown:
            yield {
                "task": {"type": PIPELINES.get(str(part(spec, "model").get("task", "")), "text-generation")},
                "dataset": {"type": name, "name": name},
                "metrics": [_metric(metric, _mean(records, metric), treated) for metric in shown],
            }


def _metric(name: str, value: float, treated: str) -> dict[str, Any]:
    """As the hub's readers know it: a share of errors is shown as accuracy."""
    if name == "error_rate" or name.startswith("task_error/"):
        label = name.removeprefix("task_error/").replace("error_rate", "accuracy")
        return {"type": "accuracy", "value": round(1 - value, DIGITS), "name": f"{label} ({treated})"}
    return {"type": name, "value": value, "name": f"{name} ({treated})"}


def _of_tasks(records: Sequence[Record]) -> list[str]:
    return [name for name in records[0].values if name.startswith("task_") and name in METRICS]


def _table(found: Mapping[Any, Found]) -> str:
    plain = {_asked(spec): records for spec, records in found.values() if treatment(spec) == UNQUANTIZED}
    lines = ["| " + " | ".join(HEAD) + " |", "|" + " - |" * len(HEAD)]
    for spec, records in found.values():
        row = _row(spec, records, plain.get(_asked(spec)))
        if any(row[1:]):  # what has none of these numbers stands in the index only
            lines.append("| " + " | ".join(map(_inert, row)) + " |")
    return "\n".join(lines) + "\n"


def _row(spec: Mapping[str, Any], records: Sequence[Record], plain: Sequence[Record] | None) -> Sequence[str]:
    metric = next((name for name in ACCURACY if name in records[0].values), None)
    accuracy = None if metric is None else 1 - _mean(records, metric)
    before = None if metric is None or not plain or metric not in plain[0].values else 1 - _mean(plain, metric)
    bits = [record.bits_per_value for record in records if record.bits_per_value is not None]
    return (
        treatment(spec),
        number(fmean(bits)) if bits else "",
        _shown(records, "loss"),
        " ".join(filter(None, (_shown(records, "loss_increase"), _ends(records)))),
        _shown(records, "kld"),
        "" if accuracy is None else f"{100 * accuracy:.1f} %",
        f"{100 * accuracy / before:.1f} %" if accuracy is not None and before else "",
    )


def _asked(spec: Mapping[str, Any]) -> tuple[object, ...]:
    """What is answered, whatever is quantized: the same windows of the same length, made alike from the same data."""
    measurement = part(spec, "measurement")
    read = (measurement.get("windows"), measurement.get("split"), digest.of(dict(part(measurement, "passage"))))
    return part(spec, "data").get("digest"), part(spec, "model").get("context"), *read


def _mean(records: Sequence[Record], metric: str) -> float:
    return fmean(record.values[metric] for record in records)


def _shown(records: Sequence[Record], metric: str) -> str:
    return number(_mean(records, metric)) if all(metric in one.values for one in records) else ""


def _ends(records: Sequence[Record]) -> str:
    """The interval over windows, where there is one model; several seeds have none of their own."""
    ends = records[0].intervals.get("loss_increase") if len(records) == 1 else None
    return f"({number(ends[0])} to {number(ends[1])})" if ends and all(map(isfinite, ends)) else ""


def _inert(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|~#&!])", r"\\\1", " ".join(text.split()))
