"""How a model is trained, as a value."""

from dataclasses import dataclass
from typing import Literal

Optimizer = Literal["adamw", "muon", "soap"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSpec:
    """Steps of `batch` windows each; warm-up, then cosine down to `final` of the peak rate.

    `lr` drives the matrices of the blocks; embedding, head and gains follow AdamW at `aux_lr`.
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

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise ValueError(f"steps and batch must be at least 1, found {self.steps} and {self.batch}")
        if self.lr <= 0 or self.aux_lr <= 0:
            raise ValueError(f"learning rates must be positive, found {self.lr} and {self.aux_lr}")
        late = [step for step in (*self.shape_steps, *self.checkpoints) if not 0 <= step <= self.steps]
        if late:
            raise ValueError(f"step {late[0]} is not between 0 and {self.steps}")
