"""The cells of a suite in running order."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from itertools import groupby
from typing import Any

from qbench.capture.sites import CALIBRATION_SITES, SiteNames, resolve
from qbench.data.catalog import stored_name
from qbench.models.spec import ModelSpec
from qbench.quant.catalog import quantizer_spec
from qbench.stats.looks import added
from qbench.suite import revisions
from qbench.suite.cells import (
    WATCHING,
    Cell,
    Environment,
    Found,
    Measurement,
    listed,
    unwatched,
)
from qbench.suite.value import CALIBRATION, STACK, Arm, Pretrained, Suite, Tensors

ROWS, WIDTH = 2048, 96  # of the calibration tensors
CONTEXT = 512  # tokens of a window, where neither the suite nor the model says less


def expand(suite: Suite, environment: Environment) -> list[Cell]:
    """All cells, model by model: first the calibration arm and the learning rates that are tried, then for each arm and
    seed what it is (its training, or what its file holds), shapes, errors, losses, and what is asked of models from
    elsewhere. Pure: the same suite and environment give the same cells.
    """
    cells = list(_calibration(suite, environment)) if suite.arms else []
    for arm in suite.arms:
        trial = Measurement(what="trial")
        cells += [_cell(suite, environment, (at_rate(arm, rate), arm.seeds[0]), trial) for rate in arm.rates]
    for arm in (at_rate(arm, environment.rates.get(arm.name)) for arm in suite.arms):
        found = environment.found.get(arm.name)
        asked = list(_measurements(suite) if found is None else _of_pretrained(suite, found, environment))
        for seed in arm.seeds:
            cells += [_cell(suite, environment, (arm, seed), measurement) for measurement in asked]
    # Entries may overlap: what two of them ask for is one cell.
    return list({cell.id: cell for cell in (*cells, *_stacks(suite, environment))}.values())


def groups(cells: Iterable[Cell]) -> list[tuple[Cell, ...]]:
    """Cells of one arm and seed together, in order: they share one model. A further look at it has other windows, a
    trial another learning rate. Stacks of one seed share a process, which costs more to start than they do.
    """

    def key(cell: Cell) -> tuple[object, ...]:
        tried = cell.id if cell.measurement.what == "trial" else ""
        arm = "" if cell.stack else cell.arm
        return arm, cell.seed, cell.measurement.passage.get("look", 1), tried

    return [tuple(group) for _, group in groupby(cells, key=key)]


def at_rate(arm: Arm, rate: float | None) -> Arm:
    """The arm with its learning rate chosen; as it is where there is nothing to choose, or not yet."""
    if arm.training is None or rate is None:
        return arm
    return replace(arm, training=replace(arm.training, lr=rate))


def _measurements(suite: Suite) -> Iterator[Measurement]:
    yield Measurement(what="training")
    places: list[dict[str, Any]] = [
        {"kind": t.kind, "sites": t.sites, "windows": t.windows, "split": t.split} for t in suite.tensors
    ]
    seen: list[Mapping[str, Any]] = []
    for place in places:
        if place not in seen:  # two entries may share a place and differ in quantizers
            yield Measurement(what="shape", **place)
            seen.append(place)
    for place, tensors in zip(places, suite.tensors, strict=True):
        for name in tensors.quantizers:
            yield Measurement(what="error", quantizer=name, **place)
    windows, split = suite.evaluate.windows, suite.evaluate.split
    for treatment in suite.treatments:
        yield Measurement(what="loss", windows=windows, split=split, treatment=treatment)
    yield from _followed(suite, {"split": split}, {})


def _of_pretrained(suite: Suite, found: Found, environment: Environment) -> Iterator[Measurement]:
    """What is asked of a model from elsewhere; its weights are read one by one, each a cell of its own."""
    yield Measurement(what="model")
    passage = _passage(suite, found)
    reads = _looks(suite, passage)
    read = reads[0]
    for tensors in suite.tensors:
        if tensors.kind == "weight":
            yield from _weights(tensors, found)
        else:
            yield from _activations(tensors, passage, calibration(suite, environment))
    yield from _losses(suite, read, environment)
    for name in suite.kernels:
        yield Measurement(what="kernel", **read, options={"name": name, "library": name.partition("/")[0]})
    for sweep in suite.sensitivity:
        asked = {part: value for part, value in asdict(sweep).items() if value}
        name = " + ".join(filter(None, (sweep.weights, sweep.inputs)))
        yield Measurement(what="sensitivity", **read, options={"name": name, **asked})
    for name in suite.tasks.lm_eval if suite.tasks else ():
        files = {"files": environment.tasks_digest} if environment.tasks_digest else {}
        limit = {"limit": suite.tasks.limit} if suite.tasks and suite.tasks.limit else {}
        yield Measurement(what="task", options={"name": name, "library": "lm_eval", **files, **limit})
    for name in suite.optimizers:
        yield Measurement(what="optimizer", **read, options={"name": name, "library": name.partition("/")[0]})
    yield from _followed(suite, {"split": "all", "passage": passage}, calibration(suite, environment))
    for more in reads[1:]:
        yield from _losses(suite, more, environment)


def _followed(suite: Suite, read: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[Measurement]:
    """Noise, additions, and errors from block to block, each on its own few windows."""
    for one in suite.noise:
        asked = {"scopes": list(one.scopes), "snr_db": list(one.snr_db), "pairs": one.pairs}
        place: dict[str, Any] = {"kind": "activation", "sites": one.sites, "windows": one.windows, **read}
        yield Measurement(what="noise", **place, options={name: value for name, value in asked.items() if value})
    if suite.adds:
        yield Measurement(what="adds", windows=suite.adds, **read)
    for one in suite.flow:
        options = data if any(needs_data(name) for name in one.treatment.assign.values()) else {}
        yield Measurement(what="flow", windows=one.windows, **read, treatment=one.treatment, options=options)


def _stacks(suite: Suite, environment: Environment) -> Iterator[Cell]:
    """Random layers: neither data nor a model have a part in what they are."""
    measurement = Measurement(what="theory")
    for seed in sorted({seed for arm in suite.stacks for seed in arm.seeds}):
        for arm in (arm for arm in suite.stacks if seed in arm.seeds):
            yield Cell(
                suite=suite.name,
                version=suite.version,
                arm=arm.name,
                model=asdict(arm.stack) | {"arch": STACK},
                training=None,
                seed=seed,
                data="synthetic",
                measurement=measurement,
                revisions=revisions.of_measurement(measurement),
                **replace(environment, data_digest="").of_cells(),
            )


def _losses(suite: Suite, read: Mapping[str, Any], environment: Environment) -> Iterator[Measurement]:
    for treatment in suite.treatments if suite.evaluate.windows else ():
        needs = any(needs_data(name) for name in treatment.assign.values())
        options = calibration(suite, environment) if needs else {}
        yield Measurement(what="loss", **read, treatment=treatment, options=options)


def _looks(suite: Suite, passage: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is read at each look, up to the one that is asked for: a look adds windows, and repeats none."""
    asks = suite.evaluate
    if not asks.looks:
        return [{"windows": asks.windows, "split": "all", "passage": passage}]
    return [
        {
            "windows": len(added(asks.looks, look)),
            "split": "all",
            "passage": {**passage, "looks": asks.looks, "look": look},
        }
        for look in range(1, asks.look + 1)
    ]


def calibration(suite: Suite, environment: Environment) -> dict[str, Any]:
    """What quantizers see before, as part of what a cell is; empty where the suite has no calibration data."""
    if suite.calibration is None:
        return {}
    name, windows = stored_name(suite.calibration.data), suite.calibration.windows
    overlap = {"overlap": True} if suite.calibration.overlap else {}
    return {"calibration": {"data": name, "digest": environment.calibration_digest, "windows": windows, **overlap}}


def needs_data(name: str) -> bool:
    """Whether a quantizer behaves otherwise with calibration data."""
    spec = quantizer_spec(name)
    return spec.static or spec.smooth is not None


def _passage(suite: Suite, found: Found) -> dict[str, Any]:
    """How a text becomes windows; images are taken as they are."""
    if found.model.get("task") == "image-classification":
        return {}
    asks, most = suite.evaluate, int(found.model.get("context") or CONTEXT)
    stride = {"stride": asks.stride} if asks.stride else {}
    return {"context": asks.context or min(most, CONTEXT), **stride, "bos": asks.bos}


def _activations(tensors: Tensors, passage: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[Measurement]:
    place: dict[str, Any] = {"kind": tensors.kind, "sites": tensors.sites, "windows": tensors.windows}
    place |= {"split": "all", "passage": passage}
    yield Measurement(what="shape", **place)
    if tensors.outliers:
        yield Measurement(what="outliers", **place)
    for name in tensors.quantizers:
        yield Measurement(what="error", quantizer=name, **place, options=data if needs_data(name) else {})


def _weights(tensors: Tensors, found: Found) -> Iterator[Measurement]:
    names = SiteNames({}, found.weights, int(found.model.get("layers") or 0))
    for site in dict.fromkeys(s for pattern in tensors.sites for s in _matrices(pattern, names)):
        yield Measurement(what="shape", kind="weight", sites=(site,))
        for name in tensors.quantizers:
            yield Measurement(what="error", kind="weight", sites=(site,), quantizer=name)


def _matrices(pattern: str, names: SiteNames) -> tuple[str, ...]:
    """The weights that a pattern selects; of a family that we do not know, `weights` are all of them."""
    known = any(name.startswith("blocks.") for name in names.weights)
    return resolve(pattern if known or pattern != "weights" else "all", "weight", names)


def _cell(suite: Suite, environment: Environment, whose: tuple[Arm, int], measurement: Measurement) -> Cell:
    arm, seed = whose
    found = environment.found.get(arm.name)
    training = None
    if arm.training is not None:
        training = {name: listed(value) for name, value in arm.training.stored().items()}
    trained: dict[str, Any] = {} if found is not None else {"train": revisions.TRAIN}
    if arm.training is not None and isinstance(arm.model, ModelSpec):
        trained |= revisions.of_training(arm.model, arm.training, environment)
    return Cell(
        suite=suite.name,
        version=suite.version,
        arm=arm.name,
        model=environment.found[arm.name].model
        if isinstance(arm.model, Pretrained)
        else arm.model.stored() | {"arch": arm.arch},
        training=training if measurement.what in WATCHING else unwatched(training),
        seed=seed,
        data=suite.data,
        measurement=measurement,
        revisions=trained | revisions.of_measurement(measurement) | revisions.of_library(measurement, environment),
        sources=_sources(suite, environment, arm),
        **environment.of_cells(),
    )


def _sources(suite: Suite, environment: Environment, arm: Arm) -> dict[str, str]:
    """Where the parts of a model from elsewhere are."""
    if arm.name not in environment.found:
        return {}
    found = {"model": environment.found[arm.name].source}
    if arm.reference:
        base = environment.found.get(arm.reference)
        found["reference"] = base.source if base else arm.reference
    if suite.calibration is not None:
        found["calibration"] = suite.calibration.data
    if suite.tasks is not None and suite.tasks.include:
        found["tasks"] = suite.tasks.include
    if isinstance(arm.model, Pretrained) and arm.model.device_map:
        found["device_map"] = arm.model.device_map
    return found


def _calibration(suite: Suite, environment: Environment) -> Iterator[Cell]:
    """Tensors with known moments under the suite's own activation quantizers: the instrument is checked first."""
    every = [name for t in suite.tensors if t.kind == "activation" for name in t.quantizers]
    names = dict.fromkeys(name for name in every if not quantizer_spec(name).static)
    place: dict[str, Any] = {"kind": "activation", "sites": CALIBRATION_SITES}
    asked = [Measurement(what="error", quantizer=name, **place) for name in names]
    for measurement in [Measurement(what="shape", **place), *asked]:
        yield Cell(
            suite=suite.name,
            version=suite.version,
            arm=CALIBRATION,
            model={"arch": CALIBRATION, "rows": ROWS, "width": WIDTH},
            training=None,
            seed=0,
            data="synthetic",
            measurement=measurement,
            revisions=revisions.of_measurement(measurement),
            **replace(environment, data_digest="").of_cells(),
        )
