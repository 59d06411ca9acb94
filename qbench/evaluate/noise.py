"""Does the network care? White noise of a fixed size at one place, no quantizer, and what it does to the loss.

A quantizer's cost at a place is, for small errors, its relative error power there times a number that only the network
has: the sensitivity. This measures that number, and so tells "easy to quantize" from "not needed".
"""

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from math import inf, nan
from typing import Any
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qbench.capture.place import Place
from qbench.evaluate.replay import Prefix
from qbench.evaluate.sensitivity import NEXT_TOKEN, Judge
from qbench.evaluate.units import blocks
from qbench.stats.interval import Interval, mean_interval

Group = Mapping[str, Place]  # places that get noise at the same time: one site, or a whole scope
WHITE = 20.0  # dB: an error of a tenth, small enough for the loss to follow its power


@dataclass(frozen=True, slots=True)
class Noise:
    """White Gaussian noise `snr_db` below each recorded tensor, in `pairs` of draws that differ in sign.

    What is linear in the noise cancels within a pair, so that the small quadratic part can be seen.
    """

    snr_db: float = WHITE
    pairs: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pairs < 1:
            raise ValueError(f"noise is drawn in at least one pair, found {self.pairs}")

    @property
    def power(self) -> float:
        """Of the noise, relative to the tensor."""
        return 10 ** (-self.snr_db / 10)


@dataclass(frozen=True, slots=True, eq=False)
class Response:
    """Loss with noise minus loss without, of each window, [N], averaged over the draws."""

    noise: Noise
    increases: NDArray[np.float64]

    @property
    def increase(self) -> Interval:
        """The mean over windows with its t interval."""
        return mean_interval(self.increases.tolist())

    @property
    def sensitivity(self) -> Interval:
        """Loss increase per relative power of the error: times a quantizer's relative_error^2 it predicts its cost."""
        return Interval(*(end / self.noise.power for end in self.increase))


@torch.no_grad()
def responses(
    model: nn.Module,
    groups: Mapping[str, Group],
    batches: Iterable[Any],
    levels: Sequence[Noise] = (Noise(),),
    judge: Judge = NEXT_TOKEN,
) -> dict[str, tuple[Response, ...]]:
    """For each group of places one response to each level of noise; blocks in front of a group are not run again.

    The noise depends on its seed, the names of place and group, the batch's number and the shape there alone, so
    models of one shape get the same; its power is exact in each batch. Memory: what leaves each block, for one batch.
    Raises ValueError where there is no batch, where a place is not reached, or where the model cannot be resumed.
    """
    layers = blocks(model)
    found: dict[tuple[str, int], list[NDArray[np.float64]]] = {}
    for number, batch in enumerate(batches):
        prefix = Prefix(layers)
        with prefix.recorded():
            clean = judge.run(model, batch)
        loss = _losses(judge, clean, clean, batch)
        for name, group in groups.items():
            for i, level in enumerate(levels):
                increases = np.zeros_like(loss)
                for draw in range(2 * level.pairs):
                    key = f"{level.seed} {name} {number} {draw // 2}"
                    with prefix.resumed(_first(group, len(layers))), noisy(group, level, key, draw % 2 == 1):
                        output = judge.run(model, batch)
                    increases += _losses(judge, output, clean, batch) - loss
                found.setdefault((name, i), []).append(increases / (2 * level.pairs))
    if not found:
        raise ValueError("there is no batch to score, or no place to put noise")
    return {
        name: tuple(Response(level, np.concatenate(found[name, i])) for i, level in enumerate(levels))
        for name in groups
    }


@contextmanager
def noisy(group: Group, noise: Noise, key: str, negative: bool = False) -> Generator[None, None, None]:
    """While open, noise is added to what flows through each place; `key` chooses it, `negative` turns its sign.

    Raises ValueError on the way out where nothing flowed through a place.
    """
    passed: dict[str, int] = dict.fromkeys(group, 0)

    def add(name: str, x: Any) -> Tensor:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f"{name} gives a {type(x).__name__}, not one floating-point tensor")
        # A head may read its states in pieces: each gets noise of its own.
        generator = torch.Generator().manual_seed(crc32(f"{key} {name} {passed[name]}".encode()))
        passed[name] += 1
        white = torch.randn(x.shape, generator=generator).to(x.device)
        power, drawn = x.detach().double().square().sum(), white.double().square().sum()
        scale = (noise.power * power / drawn).sqrt() if drawn else drawn
        return (x + (-1 if negative else 1) * scale * white).to(x.dtype)

    with ExitStack() as hooks:
        for name, place in group.items():
            hooks.enter_context(place.attach(partial(add, name)))
        yield
    if missed := [name for name, count in passed.items() if not count]:
        raise ValueError(f"nothing flowed through {', '.join(missed)}: no noise was added there")


def slope(points: Iterable[Response]) -> float:
    """The exponent of the increase as a power of the noise's: 1 where the loss follows the error's power.

    Least squares in logarithms over the responses of one group; NaN for fewer than two that cost anything.
    """
    known = [(np.log(p.noise.power), np.log(p.increase.estimate)) for p in points if 0 < p.increase.estimate < inf]
    x, y = np.array(known).T if known else (np.empty(0), np.empty(0))
    if len(set(x.tolist())) < 2:
        return nan
    return float(np.polyfit(x, y, 1)[0])


def _losses(judge: Judge, output: Tensor, clean: Tensor, batch: Any) -> NDArray[np.float64]:
    return judge.score(output, clean, batch)["loss"].double().cpu().numpy()


def _first(group: Group, layers: int) -> int:
    """The first block that has to run again, by the names of the places."""
    return min((_block(name, layers) for name in group), default=0)


def _block(name: str, layers: int) -> int:
    parts = name.split(".")
    if parts[0] == "blocks" and len(parts) > 1 and parts[1].isdigit():
        return int(parts[1])
    return layers if name in ("final", "logits") else 0
