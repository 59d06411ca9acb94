"""What a real kernel costs on a tiny Llama: bytes, time, loss, and the gap to its simulation."""

import io
import math

import numpy as np
import pytest
import torch
from libraries import library
from torch import Tensor, nn

from qbench.metrics.catalog import METRICS
from qbench.quant.kernels import KERNELS, available
from qbench.suite.judge import Costs
from qbench.suite.kernels import Trial, disk_bytes, kernel_values, timed

for package in ("torchao", "bitsandbytes"):
    library(package)
transformers = library("transformers")
VOCABULARY, LENGTH = 97, 16


class Tiny(nn.Module):
    """A Llama as every loaded model looks here."""

    def __init__(self) -> None:
        super().__init__()
        config = transformers.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=192,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
        )
        torch.manual_seed(0)
        self.hf = transformers.LlamaForCausalLM(config)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(4)

    def hidden(self, x: Tensor) -> Tensor:
        return self.hf.model(input_ids=x, use_cache=False).last_hidden_state

    def head(self, h: Tensor) -> Tensor:
        return self.hf.lm_head(h)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x))


WINDOWS = torch.randint(VOCABULARY, (8, LENGTH + 1), generator=torch.Generator().manual_seed(1))
with torch.no_grad():
    REFERENCE = Tiny().eval()(WINDOWS[:, :-1]).double().log_softmax(-1)


def in_blocks(name: str, _layer: nn.Module) -> bool:
    return ".layers." in name


@torch.no_grad()
def measure(model: nn.Module) -> Costs:
    logs = model(WINDOWS[:, :-1]).double().log_softmax(-1)
    loss = -logs.gather(-1, WINDOWS[:, 1:, None]).mean((1, 2)).numpy()
    kld = (REFERENCE.exp() * (REFERENCE - logs)).sum(-1).mean(1).numpy()
    return Costs({"loss": float(loss.mean()), "kld": float(kld.mean())}, {"loss": loss, "kld": kld})


def trial(**changed: object) -> Trial:
    usual: dict[str, object] = {
        "fresh": Tiny,
        "select": in_blocks,
        "measure": measure,
        "inputs": WINDOWS[:2, :-1],
        "floor": 0.02,
        "repeats": 3,
    }
    return Trial(**{**usual, **changed})  # type: ignore[arg-type]


@pytest.mark.parametrize("kernel", [name for name in KERNELS if not available(name, "cpu")])
def test_every_kernel_that_runs_here_is_measured(kernel: str) -> None:
    outcome = kernel_values(kernel, trial())
    values = outcome.values
    assert set(values) <= {*METRICS, "kld"}
    assert all(math.isfinite(value) for value in values.values())
    assert values["sites_touched"] == 14
    assert outcome.applied.left == {"hf.lm_head": "not chosen"}
    assert values["bytes/memory"] < values["bytes/memory/unquantized"]
    assert values["bytes/disk"] < values["bytes/disk/unquantized"]
    assert values["kld"] > 0
    assert values["latency_ms"] > 0
    assert (values["latency/batch"], values["latency/length"]) == (2, LENGTH)
    real, simulated = measure(quantized(kernel)).values, values["loss"] - values["simulation_gap"]
    assert real["loss"] == pytest.approx(values["loss"], abs=1e-6)
    assert simulated == pytest.approx(real["loss"], abs=0.05)


def quantized(kernel: str) -> nn.Module:
    from qbench.quant.vendor import apply

    model = Tiny().eval().to(getattr(torch, KERNELS[kernel].dtypes[0]))
    apply(kernel, model, in_blocks)
    return model


def test_an_equal_kernel_has_no_gap() -> None:
    outcome = kernel_values("torchao/intx4.asym-group:32", trial(floor=1e-5))
    assert abs(outcome.values["simulation_gap"]) < 1e-5
    assert outcome.values["simulation_gap/flagged"] == 0
    assert outcome.warnings == ()


def is_real(model: nn.Module) -> bool:
    """Whether a library's own layers are in it."""
    return any(type(m) is not nn.Linear or type(m.weight) is not nn.Parameter for m in model.modules() if _named(m))


def _named(module: nn.Module) -> bool:
    return "Linear" in type(module).__name__


def shifted(by: np.ndarray | float) -> Trial:
    """Both lose 1 to 2 nats a window, the kernel `by` more."""
    windows = np.linspace(1, 2, 16)

    def found(model: nn.Module) -> Costs:
        loss = windows + (by if is_real(model) else 0.0)
        return Costs({"loss": float(loss.mean())}, {"loss": loss})

    return trial(measure=found, floor=1e-6)


def test_a_gap_above_the_floor_is_flagged_and_explained() -> None:
    outcome = kernel_values("bitsandbytes/int8", shifted(1e-4))
    assert outcome.values["simulation_gap"] == pytest.approx(1e-4)
    assert outcome.values["simulation_gap/floor"] == 1e-6
    assert outcome.values["simulation_gap/flagged"] == 1
    assert outcome.warnings[0].startswith("bitsandbytes/int8 and the simulation of int8/channel differ: loss by ")
    assert "known: its weights: weights are rounded to float16 first" in outcome.warnings[0]


@pytest.mark.parametrize(("mean", "flagged"), [(0.0, 0.0), (0.4, 0.0), (0.6, 1.0)])
def test_a_gap_that_windows_do_not_agree_on_is_noise(mean: float, flagged: float) -> None:
    """Sixteen differences of standard deviation 1: two standard errors are 0.5."""
    noise = np.random.default_rng(0).normal(size=16)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    outcome = kernel_values("torchao/int8-dynamic", shifted(mean + noise))
    assert outcome.values["simulation_gap/floor"] == pytest.approx(0.5)
    assert outcome.values["simulation_gap"] == pytest.approx(mean)
    assert outcome.values["simulation_gap/flagged"] == flagged


def test_a_loss_that_is_no_number_is_flagged() -> None:
    outcome = kernel_values("torchao/int8-weight-only", shifted(math.nan))
    assert outcome.values["simulation_gap/flagged"] == 1


def test_activations_are_part_of_the_simulation() -> None:
    """Without them the gap would be that of weights alone: with them it is far smaller than the kernel's cost."""
    outcome = kernel_values("torchao/mxfp4-emulated", trial())
    assert abs(outcome.values["simulation_gap/kld"]) < 0.2 * outcome.values["kld"]


def test_a_kernel_that_runs_in_one_dtype_says_that_it_cast() -> None:
    outcome = kernel_values("torchao/mxfp8-emulated", trial())
    assert outcome.warnings == ("cast to bfloat16: torchao/mxfp8-emulated runs in nothing else",)
    plain = sum(p.numel() for p in Tiny().parameters()) * 2
    assert 0 <= outcome.values["bytes/memory/unquantized"] - plain < 1000  # rotary tables


def test_disk_bytes_are_those_of_the_file() -> None:
    file = io.BytesIO()
    model = quantized("torchao/int8-weight-only")
    torch.save(model.state_dict(), file)
    assert disk_bytes(model) == file.tell()


def test_latency_is_the_median_without_the_first_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    from qbench.suite import kernels

    times = iter([900.0, 900.0, 1.0, 10.0, 3.0, 30.0, 2.0, 20.0])
    monkeypatch.setattr(kernels, "_milliseconds", lambda _model, _inputs: next(times))
    values = timed(nn.Identity(), nn.Identity(), torch.zeros(5, 3, 4, 4), 3)
    assert (values["latency_ms"], values["latency_ms/unquantized"]) == (2.0, 20.0)
    assert values["latency/batch"] == 5
    assert "latency/length" not in values
