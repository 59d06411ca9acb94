"""Which layers are sensitive, by one backward pass a batch; and how far that order can be trusted."""

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import nan

import numpy as np
import torch
from torch import Tensor, nn

from qbench.capture.place import Matrix
from qbench.capture.read import frozen
from qbench.evaluate.sensitivity import Sensitivity, Sweep, exact
from qbench.quant.quantizer import Quantizer


@dataclass(slots=True)
class Estimate:
    """What gradients say of a unit: per window, `first` is the sum of g * d, `fisher` that of (g * d)^2.

    d is the change that quantizing makes to a weight or an input, g the gradient of the loss there. `first` is the
    predicted change of the loss, and near zero in a trained model; half of `fisher` is its second-order term with the
    Hessian's diagonal replaced by the squared gradient of a batch (empirical Fisher).
    """

    first: float = 0.0
    fisher: float = 0.0

    def add(self, product: Tensor) -> None:
        wide = product.double()
        self.first += float(wide.sum())
        self.fisher += float(wide.square().sum())


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """Units in order of `fisher`, largest first; `exact` has the first of them or all.

    `correlation`: Spearman's rho of |first| and of fisher with the exact loss increase, NaN for fewer than 3 units.
    """

    estimates: Mapping[str, Estimate]
    exact: Sensitivity
    correlation: Mapping[str, float]


def rank(sweep: Sweep, batches: Sequence[object], top: int | None = None) -> Ranking:
    """Estimate every unit, then measure the `top` of them exactly, or all."""
    found = estimate(sweep, batches)
    order = sorted(found, key=lambda name: -found[name].fisher)
    by_name = {unit.name: unit for unit in sweep.touched}
    measured = exact(replace(sweep, units=[by_name[name] for name in order[:top]]), batches)
    increase = {cost.unit: cost.mean for cost in measured.costs()}
    names = [name for name in order if name in increase]
    by_increase = [increase[name] for name in names]
    correlation = {
        "first": spearman([abs(found[name].first) for name in names], by_increase),
        "fisher": spearman([found[name].fisher for name in names], by_increase),
    }
    return Ranking({name: found[name] for name in order}, measured, correlation)


def estimate(sweep: Sweep, batches: Iterable[object]) -> dict[str, Estimate]:
    """The estimate of every unit: one forward and one backward pass a batch.

    A gradient is dropped as soon as it was looked at, so one matrix's at a time is held; parameters, their gradients
    and whether they need any are left as they were. Raises ValueError where there is no batch.
    """
    found = {unit.name: Estimate() for unit in sweep.touched}
    windows = 0
    with torch.enable_grad(), frozen(sweep.model), _watched(sweep, found):
        for batch in batches:
            output = sweep.judge.run(sweep.model, batch)
            losses = sweep.judge.score(output, output.detach(), batch)["loss"]
            losses.sum().backward()
            windows += len(losses)
    if not windows:
        raise ValueError("there is no batch to score")
    return {name: Estimate(one.first / windows, one.fisher / windows) for name, one in found.items()}


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Rank correlation, ties sharing their mean rank; NaN for fewer than 3 pairs or where one side is constant.

    >>> spearman([1.0, 2.0, 9.0], [0.1, 0.2, 0.3])
    1.0
    """
    ranks = np.array([_ranks(a), _ranks(b)])
    if ranks.shape[1] < 3 or (np.ptp(ranks, axis=1) == 0).any():
        return nan
    return float(np.corrcoef(ranks)[0, 1])


def _ranks(values: Sequence[float]) -> list[float]:
    x = np.asarray(values)
    return [float((x < v).sum() + ((x == v).sum() - 1) / 2) for v in x]


@contextmanager
def _watched(sweep: Sweep, found: Mapping[str, Estimate]) -> Generator[None, None, None]:
    """While open, every backward pass adds to the estimates. The model's parameters are frozen when this opens."""
    readers: dict[nn.Parameter, list[tuple[Estimate, Matrix, Quantizer]]] = {}
    with ExitStack() as undo:
        for unit in sweep.touched:
            for place, quantizer in sweep.treatment.of_places(unit).values():
                undo.enter_context(place.attach(partial(_see_input, found[unit.name], quantizer)))
            for matrix, quantizer in sweep.treatment.of_matrices(unit).values():
                readers.setdefault(matrix.parameter, []).append((found[unit.name], matrix, quantizer))
        for parameter, of in readers.items():
            undo.callback(setattr, parameter, "grad", parameter.grad)
            parameter.grad = None
            parameter.requires_grad_()
            undo.enter_context(parameter.register_post_accumulate_grad_hook(partial(_see_gradient, of)))
        yield


def _see_gradient(readers: Sequence[tuple[Estimate, Matrix, Quantizer]], parameter: Tensor) -> None:
    gradient = parameter.grad
    parameter.grad = None
    if gradient is None:
        return
    for estimate, matrix, quantizer in readers:
        values = matrix.read()
        part = gradient if matrix.index is None else gradient[matrix.index]
        estimate.add((part.T if matrix.transposed else part) * (quantizer.roundtrip(values) - values))


def _see_input(estimate: Estimate, quantizer: Quantizer, x: Tensor) -> Tensor:
    """A copy of its own for this reader, whose gradient is that of no other."""
    values = x.detach()
    y = (x if x.requires_grad else values.requires_grad_()).view_as(x)

    def see(gradient: Tensor) -> None:
        estimate.add(gradient * (quantizer.roundtrip(values) - values.detach()))

    y.register_hook(see)
    return y
