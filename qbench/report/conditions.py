"""How a model from elsewhere was measured: which files, on what, cut how, calibrated on what."""

from collections.abc import Mapping, Sequence
from typing import Any

from qbench.report import provenance
from qbench.report.formats import arms
from qbench.report.view import UNQUANTIZED, Arm, View
from qbench.report.words import counted, fixed, listed, number
from qbench.results.run import Run, part

SHORT = 12  # characters of a digest that a reader compares
TASKS = {"causal-lm": "causal language model", "masked-lm": "masked language model"}
BOS = {"auto": "where the tokenizer adds one", "always": "before every window", "never": "never"}


def judged(seen: View) -> Mapping[str, Any]:
    """The spec of a cell that measured a loss, or else of any cell of a model."""
    specs = [cell.spec for cell in seen.cells if part(cell.spec, "model").get("arch") == "pretrained"]
    return next((s for s in specs if part(s, "measurement").get("what") == "loss"), specs[0] if specs else {})


def sentence(seen: View) -> str:
    """What the first screen's numbers are of."""
    spec = judged(seen)
    model = listed([_named(arm) for arm in arms(seen)])
    if not any("loss_increase" in row.values for row in (*seen.select("loss"), *seen.select("sensitivity"))):
        return f"Tensors of {model}. What quantizing them costs in loss was not measured."
    data = part(spec, "data")
    device = f" on {spec['device']}" if spec.get("device") else ""
    return f"Measured on {_cut(spec)} of {data.get('name', 'unknown data')}{device}: {model}.{_plain(seen)}"


def _plain(seen: View) -> str:
    """What the unquantized models reach: the zero of every increase."""
    rows = [row for row in seen.select("loss", treatment=UNQUANTIZED) if "loss_increase" not in row.values]
    return "".join(f" Unquantized: {_reached(row.values)}." for row in rows)


def _reached(values: Mapping[str, float]) -> str:
    parts = [f"loss {number(values['loss'], 4)}"]
    parts += [f"perplexity {number(values['perplexity'])}"] if "perplexity" in values else []
    parts += [f"error rate {100 * values['error_rate']:.1f}\u202f%"] if "perplexity" not in values else []
    return listed(parts)


def _cut(spec: Mapping[str, Any]) -> str:
    n, context = _windows(spec), part(spec, "measurement", "passage").get("context")
    if part(spec, "model").get("task") == "image-classification":
        return counted(n, "image")
    return f"{counted(n, 'window')}{f' of {context} tokens' if context else ''}"


def _windows(spec: Mapping[str, Any]) -> int:
    return int(part(spec, "measurement").get("windows") or 0)


def setting(seen: View) -> str:
    """One line for a block of text, in words that another tool's user can compare."""
    spec = judged(seen)
    return f"{_cut(spec)} of {part(spec, 'data').get('name', '')}; ± is one standard error over them"


def _named(arm: Arm) -> str:
    model = arm.model
    quantized = f", quantized by {model['quantized']}" if model.get("quantized") else ""
    revision = f", revision {str(model['revision'])[:SHORT]}" if model.get("revision") else ""
    return f"{model.get('name', arm.name)} (digest {str(model.get('digest', ''))[:SHORT]}{revision}{quantized})"


def facts(run: Run, seen: View) -> list[tuple[str, str]]:
    """Label and value, in reading order; what is not known is left out."""
    spec = judged(seen)
    passage = part(spec, "measurement", "passage")
    found = [
        *((f"model {arm.name}" if len(arms(seen)) > 1 else "model", _model(arm)) for arm in arms(seen)),
        ("measured on", _cut(spec) if passage else ""),
        ("windows overlap", _stride(passage)),
        ("first token", f"beginning of sequence: {BOS.get(str(passage['bos']), passage['bos'])}" if passage else ""),
        ("part of the data", str(part(spec, "measurement").get("split", ""))),
        ("calibrated on", _calibration(seen)),
    ]
    shared = [(label, value) for label, value in provenance.facts(run, seen) if label != "seeds"]
    return [(label, value) for label, value in found if value] + shared


def _stride(passage: Mapping[str, Any]) -> str:
    if not passage:
        return ""
    stride = passage.get("stride")
    return f"each begins {stride} tokens after the one before" if stride else "no: each token is predicted once"


def _model(arm: Arm) -> str:
    m = arm.model
    parts = [
        str(m.get("name", arm.name)),
        f"{m.get('model_type', '')} {TASKS.get(str(m.get('task')), m.get('task', ''))}".strip(),
        counted(int(m.get("layers") or 0), "layer"),
        f"{fixed(float(m.get('parameters') or 0), 0)} parameters",
        f"context {m['context']}" if m.get("context") else "",
        f"loaded as {m['dtype']}" if m.get("dtype") else "",
        f"attention {m['attention']}" if m.get("attention") else "",
        f"revision {m['revision']}" if m.get("revision") else "",
        f"quantized by {m['quantized']}" if m.get("quantized") else "",
        f"digest {m['digest']}" if m.get("digest") else "",
        f"tokenizer {m['tokenizer']}" if m.get("tokenizer") else "",
        f"compared with {m['reference_model_digest']}" if m.get("reference_model_digest") else "",
    ]
    return ", ".join(filter(None, parts))


def _calibration(seen: View) -> str:
    """Data that gave static scales: never the data that the costs are measured on, unless it says so."""
    found = [part(cell.spec, "measurement", "options", "calibration") for cell in seen.cells]
    texts = dict.fromkeys(_calibrated(one) for one in found if one)
    return listed(list(texts))


def _calibrated(one: Mapping[str, Any]) -> str:
    overlap = ", which may be part of the data measured on" if one.get("overlap") else ""
    digest = f", digest {one['digest']}" if one.get("digest") else ""
    return f"{one.get('windows', '?')} windows of {one.get('data') or one.get('name')}{digest}{overlap}"


def profile(run: Run) -> str:
    """The variant of the suite that was run, "" for the suite itself."""
    return str(part(run.session, "options").get("profile") or "")


def missing(absent: Sequence[str]) -> str:
    """Which parts were not asked for, in one sentence."""
    return f"Not measured in this run: {listed(absent)}." if absent else ""
