"""How a model is trained, as a value. No torch here."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from math import inf
from types import MappingProxyType
from typing import Any, Literal

from qbench.names import pick
from qbench.quant.catalog import quantizer_spec

Optimizer = Literal["adamw", "muon", "muon-rms", "soap", "shampoo", "sgd"]
Precision = Literal["float32", "bfloat16"]
Role = Literal["matrix", "embedding", "head", "vector"]

ADAM: Mapping[str, str] = MappingProxyType({"momentum": "exp_avg", "variance": "exp_avg_sq"})
MOMENTUM: Mapping[str, str] = MappingProxyType({"momentum": "momentum_buffer"})

# What each optimizer keeps of a matrix, by what it is for, and the key under which torch files it.
STATES: Mapping[Optimizer, Mapping[str, str]] = MappingProxyType(
    {
        "adamw": ADAM,
        "muon": MOMENTUM,
        "muon-rms": MOMENTUM,
        "soap": MappingProxyType({**ADAM, "factors": "GG", "bases": "Q"}),
        "shampoo": MappingProxyType({**ADAM, "factors": "factors", "bases": "roots"}),
        "sgd": MOMENTUM,
    }
)
# Optimizers that are a library's own: another version of it may train other weights.
FROM_LIBRARIES: Mapping[Optimizer, str] = MappingProxyType({"soap": "pytorch_optimizer"})
# Written down always; what came later only where it is not the default, so that ids made from a spec stay.
FIRST = (
    *("optimizer", "lr", "aux_lr", "steps", "batch", "warmup", "final", "weight_decay", "clip"),
    *("shape_steps", "checkpoints"),
)
# What numbers must be, and how that is said; a number that is not a number is none of it.
LIMITS: Mapping[str, tuple[Callable[[float], bool], str]] = MappingProxyType(
    {
        "warmup": (lambda share: 0 <= share <= 1, "a share of the steps, from 0 to 1"),
        "final": (lambda share: 0 <= share <= 1, "a share of the peak rate, from 0 to 1"),
        "weight_decay": (lambda decay: 0 <= decay < inf, "0 or more"),
        "clip": (lambda norm: norm > 0, "the largest norm of a gradient, above 0"),
    }
)
KINDS = ("activation", "gradient", "weight", "state")
EVERY_STATE = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSpec:
    """Steps of `batch` windows each; warm-up, then cosine down to `final` of the peak rate.

    `lr` drives the matrices of the blocks; embedding, head and vectors (gains and the like) follow AdamW at `aux_lr`,
    or at a rate of their own. A batch goes through in `accumulate` parts. With `recompute` a block's activations are
    computed again in the backward pass instead of kept.

    `quantized` maps "kind:scope or pattern" to a quantizer, as the treatments of a suite do, and holds during the
    training step: activations and gradients pass straight through, weights with QuEST's trust mask. "state:" with
    momentum, variance, factors, bases or all is what the optimizer keeps of the blocks' matrices after each step.
    """

    optimizer: Optimizer = "adamw"
    lr: float = 3e-3
    aux_lr: float = 3e-3
    steps: int = 500
    batch: int = 8
    warmup: float = 0.05
    final: float = 0.1
    weight_decay: float = 0.1
    clip: float = 1.0
    shape_steps: tuple[int, ...] = ()  # kurtosis by site is logged after these steps
    checkpoints: tuple[int, ...] = ()  # weights are kept after these steps
    embedding_lr: float | None = None
    head_lr: float | None = None
    vector_lr: float | None = None
    accumulate: int = 1
    precision: Precision = "float32"  # of the matrix products (autocast); weights and optimizer stay in float32
    compiled: bool = False
    recompute: bool = False
    quantized: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise ValueError(f"steps and batch must be at least 1, found {self.steps} and {self.batch}")
        rates = [self.lr, self.aux_lr, self.embedding_lr, self.head_lr, self.vector_lr]
        if wrong := [rate for rate in rates if rate is not None and not 0 < rate < inf]:
            raise ValueError(f"learning rates must be positive numbers, found {wrong[0]}")
        for name, (right, what) in LIMITS.items():
            if not right(getattr(self, name)):
                raise ValueError(f"{name} must be {what}, found {getattr(self, name)}")
        late = [step for step in (*self.shape_steps, *self.checkpoints) if not 0 <= step <= self.steps]
        if late:
            raise ValueError(f"step {late[0]} is not between 0 and {self.steps}")
        if self.accumulate < 1 or self.batch % self.accumulate:
            raise ValueError(f"a batch of {self.batch} windows does not split into {self.accumulate} equal parts")
        if self.compiled and self.quantized:
            raise ValueError("quantizers inside a training are not compiled: leave out `compiled` or `quantized`")
        self._check_quantized()

    def rate(self, role: Role) -> float:
        """Peak learning rate of the parameters with this role."""
        if role == "matrix":
            return self.lr
        own = {"embedding": self.embedding_lr, "head": self.head_lr, "vector": self.vector_lr}[role]
        return self.aux_lr if own is None else own

    def states(self) -> dict[str, str]:
        """Key of the optimizer's state -> the quantizer it goes through after each step; what comes later holds."""
        found: dict[str, str] = {}
        for key, name in (self.quantized or {}).items():
            kind, _, what = key.partition(":")
            if kind == "state":
                known = STATES[self.optimizer]
                found |= dict.fromkeys(known.values() if what == EVERY_STATE else [known[what]], name)
        return found

    def stored(self) -> dict[str, Any]:
        """The spec as plain data for files and ids; `TrainingSpec(**stored)` makes it again.

        >>> sorted(TrainingSpec(accumulate=2).stored().keys() - TrainingSpec().stored().keys())
        ['accumulate']
        """
        defaults = {field.name: field.default for field in fields(self)}
        return {name: value for name, value in asdict(self).items() if name in FIRST or value != defaults[name]}

    def _check_quantized(self) -> None:
        if self.quantized is None:
            return
        object.__setattr__(self, "quantized", dict(self.quantized))  # plain data, whatever it came in
        for key, name in self.quantized.items():
            self._check(key, name)

    def _check(self, key: str, name: str) -> None:
        kind, _, what = key.partition(":")
        if kind not in KINDS or not what:
            raise ValueError(f"{key!r} is not KIND:SCOPE with a kind of {', '.join(KINDS)}")
        if kind == "state":
            pick({**STATES[self.optimizer], EVERY_STATE: ""}, what, f"state of {self.optimizer}")
        quantizer_spec(name)
