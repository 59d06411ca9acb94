"""Result files that the lm-evaluation-harness wrote, with their samples, as cells."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from math import isclose
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from qbench.evaluate.documents import Costs, costs_of, error_rates
from qbench.evaluate.imported import BadSamples, Imported, public
from qbench.results.record import Record

HASHES = ("doc_hash", "prompt_hash", "target_hash")
LARGEST = 1 << 28  # bytes of a result file
LONGEST = 1 << 24  # bytes of a sample, which holds its whole document
LOADERS = ("json", "csv", "text", "parquet", "arrow", "pandas", "xml")  # of the datasets library: no data's names
KEYS = ("results", "configs", "versions", "n-samples", "config")
AGREE = 1e-6  # relative, between the results and the mean over samples
_DATE = re.compile(r"results_(?P<date>.+)\.json")
_HEX = re.compile(r"[0-9a-f]{64}")

Results = Mapping[str, Any]


def read(path: str | Path) -> list[Imported]:
    """One cell for each task of a `results_*.json`, with the `samples_<task>_*.jsonl` that lie beside it.

    A task without samples has its summary only, and a warning. Raises BadSamples for a file that is no such result, or
    whose samples are not those of its results.
    """
    path = Path(path)
    results = _results(path)
    tasks = [name for name in results["results"] if name in results["configs"]]
    if not tasks:
        raise BadSamples(f"{path.name}: no task has results")
    return [_task(name, results, path) for name in tasks]


def is_result(path: Path) -> bool:
    """Whether a file looks like the harness's results: an object that spans lines, not a line of JSON each."""
    return path.suffix == ".json"


def _results(path: Path) -> Results:
    if path.stat().st_size > LARGEST:
        raise BadSamples(f"{path.name}: larger than {LARGEST} bytes; no result of the lm-evaluation-harness is")
    try:
        raw = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BadSamples(f"{path.name}: not JSON ({error})") from error
    found = cast(dict[str, Any], raw) if isinstance(raw, dict) else {}
    missing = [name for name in KEYS if not isinstance(found.get(name), dict)]
    if missing:
        raise BadSamples(f"{path.name}: no {', '.join(missing)}; expected results_*.json of the lm-evaluation-harness")
    return found


def _task(name: str, results: Results, path: Path) -> Imported:
    config = _part(results["configs"], name)
    filtered, said = _said(_part(results["results"], name))
    samples = _samples(name, path, filtered)
    costs = list(_costs(config, samples)) if samples else list(_summary(said))
    if not costs:
        raise BadSamples(f"{path.name}: no metric of task {name} is one that qbench knows as a cost")
    if samples:
        _check(name, costs, said, path)
    costs += error_rates(costs)
    n = len(samples) or int(_part(results["n-samples"], name).get("effective") or 0)
    vectors: dict[str, NDArray[Any]] = {}
    if samples:
        each = {key: vector for one in costs for key, vector in one.vectors.items()} | _hashes(samples, path)
        vectors = {f"{name}/{key}": vector for key, vector in each.items()}
    record = Record(
        cell="",
        site=name,
        values={one.name: one.value for one in costs},
        intervals={one.name: one.interval for one in costs if samples},
        n=n,
    )
    warnings = () if samples else (f"{name}: no samples beside {path.name}; run lm_eval with --log_samples to pair",)
    return Imported(
        model=_model(results),
        data={"name": _data(name, config), "digest": _digest(vectors, results, name)},
        measurement={"what": "task", "options": _options(name, config, results, filtered)},
        runtime=f"lm_eval {results.get('lm_eval_version', 'unknown')} ({results['config'].get('model', 'unknown')})",
        records=[record],
        vectors=vectors,
        device=str(results["config"].get("device") or ""),
        warnings=warnings,
    )


def _part(whole: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = whole.get(name)
    return cast(dict[str, Any], found) if isinstance(found, dict) else {}


def _said(results: Mapping[str, Any]) -> tuple[str, Mapping[str, float]]:
    """The task's first filter, and its values by metric: other filters judge the same answers once more."""
    found = {key: value for key, value in results.items() if "," in key and isinstance(value, int | float)}
    first = next(iter(found), "").partition(",")[2]
    split = {key: key.partition(",") for key in found}
    return first, {metric: found[key] for key, (metric, _, how) in split.items() if how == first}


def _samples(name: str, path: Path, filtered: str) -> list[Mapping[str, Any]]:
    """The documents of a task in order, those of one filter; none where there is no file."""
    date = _DATE.fullmatch(path.name)
    file = path.with_name(f"samples_{name}_{date['date']}.jsonl") if date else None
    if file is None or not file.is_file() or file.is_symlink():
        return []
    found: list[Mapping[str, Any]] = []
    with file.open("rb") as lines:
        while line := lines.readline(LONGEST + 1):
            try:
                raw = json.loads(line) if len(line) <= LONGEST else None
            except (ValueError, RecursionError):
                raw = None
            if not isinstance(raw, dict) or not isinstance(raw.get("doc_id"), int):
                raise BadSamples(f"{file.name}:{len(found) + 1}: not a sample of the lm-evaluation-harness")
            found.append(cast(dict[str, Any], raw))
    wanted = [one for one in found if str(one.get("filter", filtered)) == filtered]
    if found and not wanted:
        raise BadSamples(f"{file.name}: no sample of the filter {filtered!r}, whose results stand beside it")
    return sorted(wanted, key=lambda one: one["doc_id"])


def _costs(config: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> Iterator[Costs]:
    aggregations = {one["metric"]: str(one.get("aggregation", "mean")) for one in _metrics(config)}
    metrics = dict.fromkeys(str(name) for one in samples for name in one.get("metrics") or ())
    for metric in metrics:
        try:
            found = costs_of(metric, [one.get(metric) for one in samples], aggregations.get(metric, "mean"), seed=0)
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise BadSamples(f"the samples of {config.get('task')} have no number for {metric}: {error}") from error
        if found is not None and np.isfinite([found.value, *found.interval]).all():
            yield found


def _summary(said: Mapping[str, float]) -> Iterator[Costs]:
    """What the results alone say: costs without a number for each document."""
    for metric, value in said.items():
        if not metric.endswith("_stderr"):
            found = costs_of(metric, [_item(metric, float(value))], "mean", seed=0)
            if found is not None and np.isfinite(found.value):
                yield Costs(found.name, found.value, (found.value, found.value), {})


def _item(metric: str, value: float) -> Any:
    """A single document that has the task's score: what costs_of turns into the task's cost."""
    nats = {"bits_per_byte": value * float(np.log(2))}
    if metric in ("byte_perplexity", "word_perplexity", "perplexity") and value > 0:
        nats[metric] = float(np.log(value))
    return (-nats[metric], 1) if metric in nats else value


def _metrics(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    listed = config.get("metric_list")
    return [one for one in listed if isinstance(one, dict) and "metric" in one] if isinstance(listed, list) else []


def _check(name: str, costs: Sequence[Costs], said: Mapping[str, float], path: Path) -> None:
    """Samples of another run would pair windows that have nothing to do with each other."""
    summaries = {one.name: one.value for one in _summary(said)}
    for one in costs:
        told = summaries.get(one.name)
        if told is not None and not isclose(told, one.value, rel_tol=AGREE, abs_tol=AGREE):
            raise BadSamples(
                f"{path.name}: {one.name} of {name} is {told:.6g} by the results and {one.value:.6g} by the samples "
                "beside them; they belong to different runs"
            )


def _hashes(samples: Sequence[Mapping[str, Any]], path: Path) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = {}
    for kind in HASHES:
        each = [str(one.get(kind, "")) for one in samples]
        if not all(_HEX.fullmatch(one) for one in each):
            raise BadSamples(f"{path.name}: samples without a {kind}; they cannot be paired")
        found[kind] = np.frombuffer(bytes.fromhex("".join(each)), np.uint8).reshape(len(each), 32)
    return found


def _data(name: str, config: Mapping[str, Any]) -> str:
    """Where the documents come from; a task that reads files of its own stands for them."""
    path = str(config.get("dataset_path") or "")
    return public(name if path in ("", *LOADERS) else path)


def _digest(vectors: Mapping[str, NDArray[Any]], results: Results, name: str) -> str:
    """Of the documents, whatever a model was asked about them."""
    from hashlib import sha256

    if f"{name}/doc_hash" in vectors:
        return sha256(vectors[f"{name}/doc_hash"].tobytes()).hexdigest()
    return str(_part(results, "task_hashes").get(name, ""))


def _options(name: str, config: Mapping[str, Any], results: Results, filtered: str) -> dict[str, Any]:
    """What makes it another task: its version, its few-shot examples, how many documents, how answers are read."""
    limit = results["config"].get("limit")
    shots = config.get("num_fewshot") or 0
    version = results["versions"].get(name)
    told: dict[str, Any] = {"name": name, "library": "lm_eval", "version": str(version), "few_shot": int(shots)}
    told |= {"limit": float(limit)} if isinstance(limit, int | float) else {}
    return told | ({"filter": filtered} if filtered not in ("", "none") else {})


def _model(results: Results) -> dict[str, Any]:
    said = results["config"]
    name = str(results.get("model_name") or _part(said, "model_args").get("pretrained") or "model")
    return {
        "name": public(name),
        "digest": str(said.get("model_sha") or ""),
        "dtype": str(said.get("model_dtype") or "").removeprefix("torch."),
        "parameters": said.get("model_num_parameters"),
    }
