"""Every residual addition is found and seen, and no copy is kept; gains and other wirings included."""

from typing import Any

import pytest
import torch
from by_hand import small, tokens
from torch import Tensor, nn

from qbench.capture.families import site_names
from qbench.capture.joints import Add, adds, watching_adds
from qbench.capture.place import as_places
from qbench.capture.places import names, places
from qbench.capture.sites import SiteNames, own
from qbench.metrics.joint import measure_add


def made_up(*there: str, copies: dict[str, str] | None = None) -> SiteNames:
    inside = {f"blocks.0.{name}": f"blocks.0.{(copies or {}).get(name, name)}" for name in there}
    return SiteNames({"embed": "embed", "blocks.0.in": "embed", **inside}, (), 1)


BLOCK = ("attn.out", "mid", "mlp.out", "out")
FOUND: dict[str, tuple[SiteNames, list[tuple[str, tuple[str, ...], str]]]] = {
    "pre-norm": (made_up(*BLOCK), [("in", ("attn.out",), "mid"), ("mid", ("mlp.out",), "out")]),
    "no skips": (made_up(*BLOCK, copies={"attn.out": "mid", "mlp.out": "out"}), []),
    "attention only": (made_up(*BLOCK, copies={"mlp.out": "out"}), [("in", ("attn.out",), "mid")]),
    "mlp only": (made_up(*BLOCK, copies={"attn.out": "mid"}), [("mid", ("mlp.out",), "out")]),
    "post-norm": (
        made_up(*BLOCK, "attn.sum", "mlp.sum"),
        [("in", ("attn.out",), "attn.sum"), ("mid", ("mlp.out",), "mlp.sum")],
    ),
    "side by side": (made_up("attn.out", "mlp.out", "out"), [("in", ("attn.out", "mlp.out"), "out")]),
    "normed branches": (
        made_up(*BLOCK, "attn.normed", "mlp.scaled", "mlp.normed"),
        [("in", ("attn.normed",), "mid"), ("mid", ("mlp.scaled",), "out")],
    ),
}


@pytest.mark.parametrize("wiring", FOUND)
def test_additions_by_the_names_of_places(wiring: str) -> None:
    known, expected = FOUND[wiring]

    def full(name: str) -> str:
        return "embed" if name == "in" else f"blocks.0.{name}"

    assert adds(known) == tuple(Add(full(s), tuple(map(full, b)), full(t)) for s, b, t in expected)


def test_real_families() -> None:
    llama = site_names({"model_type": "llama", "num_hidden_layers": 2})
    phi = site_names({"model_type": "phi", "num_hidden_layers": 2})
    assert llama is not None
    assert phi is not None
    assert [add.total for add in adds(llama)] == ["blocks.0.mid", "blocks.0.out", "blocks.1.mid", "blocks.1.out"]
    assert [add.branches for add in adds(phi)] == [(f"blocks.{i}.attn.out", f"blocks.{i}.mlp.out") for i in (0, 1)]


def test_what_is_seen_is_what_the_model_adds() -> None:
    model = small("residual")
    recorded: dict[str, list[Tensor]] = {}
    seen: list[str] = []

    def keep(name: str, module: nn.Module) -> None:
        module.register_forward_hook(lambda _m, _i, x: recorded.setdefault(name, []).append(x))

    for name, module in model.sites().items():
        keep(name, module)
    by_total = {add.total: add for add in adds(own("residual", 2))}

    def visit(total: str, stream: Tensor, y: Tensor, branch: Tensor | None) -> None:
        add = by_total[total]
        assert stream.data_ptr() == recorded[add.stream][-1].data_ptr()  # no copy
        assert y.data_ptr() == recorded[total][-1].data_ptr()
        assert branch is not None
        assert branch.data_ptr() == recorded[add.branches[0]][-1].data_ptr()
        assert torch.equal(y, stream + branch)
        seen.append(total)

    with torch.no_grad(), watching_adds(places(model), adds(own("residual", 2)), visit):
        for batch in (tokens(3), tokens(2, seed=4)):
            model(batch)
    assert seen == ["blocks.0.mid", "blocks.0.out", "blocks.1.mid", "blocks.1.out"] * 2
    model(tokens(1))
    assert len(seen) == 8


def test_without_skips_nothing_is_seen() -> None:
    model = small("residual-free")
    found = names(model)
    assert found is not None
    with watching_adds(places(model), adds(found), lambda *_: pytest.fail("there is no addition")):
        model(tokens(1))


class SideBySide(nn.Module):
    """x + gain attn(x) + gain mlp(x), with a site at each place."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.attn, self.mlp = nn.Linear(6, 6), nn.Linear(6, 6)
        self.gain = gain
        self.site = nn.ModuleDict({name: nn.Identity() for name in ("embed", "attn", "mlp", "out")})

    def forward(self, x: Tensor) -> Any:
        x = self.site["embed"](x)
        return self.site["out"](x + self.gain * (self.site["attn"](self.attn(x)) + self.site["mlp"](self.mlp(x))))


@pytest.mark.parametrize("gain", [1.0, 0.2])
def test_branches_side_by_side_join_together(gain: float) -> None:
    torch.manual_seed(0)
    model = SideBySide(gain)
    there = as_places({"embed": model.site["embed"], "blocks.0.attn.out": model.site["attn"],
                       "blocks.0.mlp.out": model.site["mlp"], "blocks.0.out": model.site["out"]})  # fmt: skip
    found: list[float | None] = []

    def visit(_total: str, stream: Tensor, y: Tensor, branch: Tensor | None) -> None:
        found.append(measure_add(stream, y, branch).alignment)

    with watching_adds(there, adds(FOUND["side by side"][0]), visit):
        model(torch.randn(5, 6))
    assert found == [pytest.approx(1)]
    del there["blocks.0.mlp.out"]
    with watching_adds(there, adds(FOUND["side by side"][0]), visit):
        model(torch.randn(5, 6))
    assert found[1] is None
