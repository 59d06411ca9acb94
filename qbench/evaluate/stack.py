"""What a stack of random layers is: its wiring, its layers, its rows. No torch here."""

from dataclasses import dataclass
from typing import Literal, get_args

from qbench.names import pick

StackWiring = Literal["residual", "dense"]
BranchName = Literal["gaussian-noise", "laplace-noise", "rotation", "mlp", "shared-scale", "cubic"]
InputName = Literal["gaussian", "laplace", "uniform", "hot-channel", "token-scale"]

NAMES = {"wiring": get_args(StackWiring), "branch": get_args(BranchName), "input": get_args(InputName)}
ALONE: tuple[BranchName, ...] = ("rotation", "mlp")  # they pass their input on, so they may stand without a skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """`depth` random layers of one kind over `rows` random rows: x + sqrt(ratio) f(x), or f(x) where `dense`.

    `ratio` is the variance that each addition brings, over that of the stream in front of it.
    """

    wiring: StackWiring = "residual"
    branch: BranchName = "rotation"
    input: InputName = "laplace"
    width: int = 256
    depth: int = 12
    ratio: float = 0.1
    rows: int = 4096

    def __post_init__(self) -> None:
        for name, known in NAMES.items():
            pick(dict.fromkeys(known), getattr(self, name), name)
        if min(self.width, self.depth, self.rows) < 1 or self.ratio <= 0:
            raise ValueError(f"width, depth, rows and ratio must be positive, found {self}")
        if self.wiring == "dense" and self.branch not in ALONE:
            known = ", ".join(ALONE)
            raise ValueError(
                f"{self.branch!r} does not pass its input on, so it needs a skip; dense stacks of: {known}"
            )
