"""Numbers that cannot be: better than any model, fewer bits than are stored, no error at all, measured twice."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from qbench.quant.family import STORAGES
from qbench.quant.spec import QuantizerName, QuantizerSpec
from qbench.quant.spelling import parse
from qbench.report.leaderboard.hostile import plain
from qbench.report.leaderboard.rows import METRICS
from qbench.results import digest
from qbench.results.record import Attempt, Record
from qbench.results.run import Run, arm, part

# The best compressors of English text, which are language models with everything in memory, need about 0.6 bits a byte
# (M. Mahoney, Large Text Compression Benchmark); nobody has come to half of that on text that was not trained on.
ENTROPY_FLOOR = 0.3  # bits per byte
LEAST_LOSS = 1e-3  # nats; a model that is surer than this has seen the text
WIDEST = 2**20  # values in a token or a row of a weight
LARGEST = 1e15  # of any number in a row; a mean over all seeds stays finite, and tables can hold it
MOST_BITS = 2.0**10  # a value: a tensor of a few values may be all padding, scales and levels
MOST_SAMPLES = 2**40
ENDS: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys((*METRICS, "loss_increase", "kld"), (-LARGEST, LARGEST)),
    **dict.fromkeys(("floor/window", "floor/numerical"), (0.0, LARGEST)),
    "bits_per_value/model": (0.0, MOST_BITS),
    "bytes/model": (0.0, 2.0**53),
}
ZERO = ("relative_error", "kld", "top1_changed", "loss_increase")


def faults(run: Run) -> Iterator[str]:
    for attempt in run.cells.values():
        spec, cell = attempt.closing.spec, attempt.closing.cell
        for record in attempt.records:
            for text in (
                *_no_number(record),
                *_too_good(record, spec),
                *_too_few_bits(record, spec),
                *_no_error(record, spec),
            ):
                yield f"cell {plain(cell, 20)}: {text}"
        if twice := _twice(attempt.records):
            yield f"cell {plain(cell, 20)}: {twice} records are of the same place, quantizer and step"
        if not _answered(attempt):
            yield f"cell {plain(cell, 20)}: a measured loss without a number"
    yield from _increases(run)
    yield from _copied(run)


def _no_number(record: Record) -> Iterator[str]:
    """What rows are made of lies within bounds, intervals included; one number too large would stop every table."""
    told = {name: record.values[name] for name in ENDS if name in record.values}
    for name, value in told.items():
        low, high = ENDS[name]
        if not low <= value <= high:
            yield f"{name} cannot be {value:.6g}; allowed: {low:.6g} to {high:.6g}"
    for name, (low, high) in record.intervals.items():
        if name in told and not -LARGEST <= low <= high <= LARGEST:
            yield f"the interval of {name} cannot be {low:.6g} to {high:.6g}"
    if record.bits_per_value is not None and not 0 <= record.bits_per_value <= MOST_BITS:
        yield f"a value cannot have {record.bits_per_value:.6g} bits; allowed: 0 to {MOST_BITS:.6g}"
    if record.n > MOST_SAMPLES:
        yield f"{record.n} samples are more than anybody has measured"


def _answered(attempt: Attempt) -> bool:
    asked = part(attempt.closing.spec, "measurement").get("what") == "loss" and attempt.closing.status == "measured"
    return not asked or any("loss" in one.values and not one.slice for one in attempt.records)


def _increases(run: Run) -> Iterator[str]:
    """An increase is the loss minus that of the same model and seed with nothing quantized."""
    losses = [(one, record) for one in run.cells.values() for record in one.records if _whole_loss(one, record)]
    bases = {_place(one): record.values["loss"] for one, record in losses if not _assigned(one.closing.spec)}
    for one, record in losses:
        base, told = bases.get(_place(one)), record.values.get("loss_increase")
        if base is None or told is None or not _assigned(one.closing.spec):
            continue
        right = record.values["loss"] - base
        if abs(told - right) > 1e-6 * max(1.0, abs(record.values["loss"])):
            yield f"cell {plain(one.closing.cell, 20)}: an increase of {told:.6g}, but the losses differ by {right:.6g}"


def _whole_loss(attempt: Attempt, record: Record) -> bool:
    return (
        part(attempt.closing.spec, "measurement").get("what") == "loss" and "loss" in record.values and not record.slice
    )


def _place(attempt: Attempt) -> str:
    """All of a cell but what it quantizes."""
    spec = dict(attempt.closing.spec)
    asked = {name: value for name, value in part(spec, "measurement").items() if name not in ("treatment", "options")}
    revisions = {name: value for name, value in part(spec, "revisions").items() if name != "quantizers"}
    return digest.of(spec | {"measurement": asked, "revisions": revisions})


def _too_good(record: Record, spec: Mapping[str, Any]) -> Iterator[str]:
    if part(spec, "measurement").get("what") != "loss":
        return
    per_byte, loss = record.values.get("bits_per_byte"), record.values.get("loss")
    if per_byte is not None and per_byte < ENTROPY_FLOOR:
        yield f"{per_byte:.4g} bits per byte is below the entropy of text ({ENTROPY_FLOOR}); was it trained on?"
    if loss is not None and loss < LEAST_LOSS:
        yield f"a loss of {loss:.4g} nats is below what any model reaches; was it trained on the test text?"
    rate = record.values.get("error_rate")
    if rate is not None and not 0 <= rate <= 1:
        yield f"an error rate of {rate:.4g} is no share"


def _too_few_bits(record: Record, spec: Mapping[str, Any]) -> Iterator[str]:
    told = record.bits_per_value
    names = _quantizers(record, spec)
    least = min(map(_least_bits, names), default=0.0)
    if told is not None and names and told < least * (1 - 1e-6):
        yield f"{told:.4g} bits a value, but {plain(' and '.join(names), 80)} stores at least {least:.6g}"


def _assigned(spec: Mapping[str, Any]) -> list[str]:
    return list(part(spec, "measurement", "treatment", "assign").values())


def _quantizers(record: Record, spec: Mapping[str, Any]) -> list[str]:
    """What the cell was asked to use goes before what a record says it used."""
    asked = part(spec, "measurement").get("quantizer")
    return _assigned(spec) or [str(asked or record.quantizer)] * bool(asked or record.quantizer)


def _least_bits(name: str) -> float:
    """Codes and their scales, of a tensor as large as any; 0 for names that only a library or a plugin knows."""
    try:
        spec = parse(name)
    except QuantizerName:
        return 0.0
    return spec.bits + _scale_bits(spec)


def _scale_bits(spec: QuantizerSpec) -> float:
    """A block has its own scale; a token or channel shares one among its values, of which there are at most WIDEST."""
    if spec.static or spec.rule == "none" or spec.granularity == "tensor":
        return 0.0
    return STORAGES[spec.scale].bits / (spec.block or WIDEST)


def _no_error(record: Record, spec: Mapping[str, Any]) -> Iterator[str]:
    if not _quantizers(record, spec):
        return
    for name in ZERO:
        if record.values.get(name) == 0 and _few(record, spec) and _counts(name, record):
            yield f"{name} is exactly 0 at {plain(record.site or record.scope, 60) or 'the model'}; did it quantize?"


def _counts(name: str, record: Record) -> bool:
    """Few first choices may all stay; a whole divergence of 0 means that nothing was touched."""
    return name != "top1_changed" or record.values.get("kld", 0.0) == 0


def _few(record: Record, spec: Mapping[str, Any]) -> bool:
    """Eight bits or fewer: more may well leave float32 losses as they are."""
    bits = [_least_bits(name) for name in _quantizers(record, spec)]
    return bool(bits) and 0 < min(bits) < 9 and record.values.get("zeroed", 0.0) < 1


def _twice(records: tuple[Record, ...]) -> int:
    places = [(one.kind, one.site, one.scope, one.quantizer, one.step, one.slice) for one in records]
    return len(places) - len(set(places))


def _copied(run: Run) -> Iterator[str]:
    """Two seeds, or two models, of which one question has the very same numbers: a copy, not a measurement.

    What a treatment is called, and the name that a cell has for its question, do not make it another.
    """
    seen: dict[tuple[str, str], list[str]] = defaultdict(list)
    for attempt in run.cells.values():
        spec = attempt.closing.spec
        if part(spec, "measurement").get("what") != "loss" or spec.get("training") is None or not attempt.records:
            continue
        numbers = digest.of([dict(record.values) for record in attempt.records])
        seen[_question(spec), numbers].append(f"{arm(spec)}, seed {spec['seed']}")
    for who in map(list, map(dict.fromkeys, seen.values())):
        if len(who) > 1:
            yield f"{plain(who[0], 80)} and {plain(who[1], 80)} have the very same numbers; one is a copy"


def _question(spec: Mapping[str, Any]) -> str:
    asked = dict(part(spec, "measurement")) | {"treatment": part(spec, "measurement", "treatment").get("assign")}
    return digest.of([part(spec, "data").get("digest"), asked])
