"""Size and wiring of a transformer, as a value."""

from dataclasses import dataclass
from typing import Literal

Wiring = Literal["residual", "residual-free"]
Init = Literal["gpt2", "orthogonal", "fan-in"]
Temperature = Literal["const", "inv-sqrt-layer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A decoder over bytes or tokens; two equal specs with equal seeds are the same model at step 0.

    `qk_noise` and `qk_diagonal` are alpha and beta of W_Q W_K^T = alpha Z + beta I, used by `init: orthogonal`.
    """

    layers: int = 6
    width: int = 64
    heads: int = 4
    context: int = 64
    vocabulary: int = 256
    wiring: Wiring = "residual"
    norm: Literal["rmsnorm"] = "rmsnorm"
    mlp: Literal["gelu"] = "gelu"
    mlp_ratio: int = 4
    positions: Literal["rope"] = "rope"
    init: Init = "gpt2"
    temperature: Temperature = "const"
    qk_noise: float = 0.1
    qk_diagonal: float = 5.0

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads", "context", "vocabulary", "mlp_ratio"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(
                f"width {self.width} over {self.heads} heads must give an even head size (RoPE turns pairs)"
            )
