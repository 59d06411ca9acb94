"""Classifiers of images: the blocks and the names of the decoders, with patches at one end and classes at the other."""

from dataclasses import replace
from math import log, sqrt
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from qbench.capture.sites import SCOPES, of, resolve
from qbench.models.catalog import MODELS, model_spec
from qbench.models.spec import ModelSpec, Pooling
from qbench.models.transformer import Transformer, build

SMALL: dict[str, Any] = {"layers": 3, "width": 32, "heads": 4, "vocabulary": 10, "task": "vision", "channels": 3}
every_arch = pytest.mark.parametrize("arch", MODELS)
both_poolings = pytest.mark.parametrize("pooling", ["mean", "class"])


def classifier(arch: str, **settings: Any) -> Transformer:
    return build(model_spec(arch, **{**SMALL, **settings}), seed=0)


def images(n: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def at(model: Transformer, *sites: str) -> list[Tensor]:
    """What flows there for one batch of images."""
    seen: dict[str, Tensor] = {}
    for name in sites:
        model.sites()[name].register_forward_hook(lambda _m, _a, out, name=name: seen.update({name: out.detach()}))
    model(images())
    return [seen[name] for name in sites]


@every_arch
@both_poolings
def test_every_model_of_the_catalog_classifies(arch: str, pooling: Pooling) -> None:
    """It begins by guessing, a gradient reaches every parameter, and three steps of training change all of them."""
    model = classifier(arch, pooling=pooling, clip=0.5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0)
    losses: list[float] = []
    for _ in range(3):
        loss = cross_entropy(model(images(10)), torch.arange(10))
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[0] == pytest.approx(log(10), rel=0.05)
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []
    assert all(p.isfinite().all() for p in model.parameters())


@every_arch
def test_its_places_are_called_what_the_decoders_are_called(arch: str) -> None:
    vision, text = (replace(model_spec(arch, **SMALL), task=task) for task in ("vision", "language"))
    assert of(vision).sites == of(text).sites == tuple(build(vision, seed=0).sites())
    assert of(vision).weights == of(text).weights
    for kind, scopes in SCOPES.items():
        assert all(resolve(scope, kind, of(vision)) == resolve(scope, kind, of(text)) for scope in scopes)


def test_its_blocks_are_the_decoders_but_for_the_mask() -> None:
    """The same weights on the same stream: where a decoder's last token sees everything, both give the same."""
    vision = classifier("residual-free")
    text = build(replace(vision.spec, task="language", context=16), seed=0)
    text.blocks.load_state_dict(vision.blocks.state_dict())
    stream = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(3))
    seen, masked = (model.blocks[0](stream) for model in (vision, text))
    torch.testing.assert_close(seen[:, -1], masked[:, -1], rtol=1e-4, atol=1e-5)
    assert (seen[:, 0] - masked[:, 0]).abs().max() > 0.01


def test_patches_are_read_row_by_row() -> None:
    """Each is one vector, channel by channel, times the embedding; positions are added."""
    model = classifier("learned-positions", position_deviation=0.5)
    (embedded,) = at(model, "embed")
    table = model.get_parameter("positions")
    for n in range(16):
        row, column = divmod(n, 4)
        patch = images()[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten(1)
        torch.testing.assert_close(embedded[:, n], linear(patch, model.embed) + table[n])


def test_the_embedding_keeps_the_scale_of_what_it_reads() -> None:
    model = classifier("residual", width=128, channels=1, image=32, patch=8)
    assert model.embed.std().item() == pytest.approx(1 / sqrt(64), rel=0.03)


def test_a_class_token_stands_first_and_its_state_is_what_the_head_reads() -> None:
    model = classifier("residual", pooling="class", positions="learned")
    first, final, logits = at(model, "embed", "final", "logits")
    assert first.shape == final.shape == (4, 17, 32)
    token = model.get_parameter("class_token") + model.get_parameter("positions")[0]
    torch.testing.assert_close(first[:, 0], token.expand(4, -1))
    torch.testing.assert_close(logits, final[:, 0] @ model.logits.T)


def test_without_one_the_head_reads_the_mean_of_all_patches() -> None:
    final, logits = at(model := classifier("residual"), "final", "logits")
    assert final.shape == (4, 16, 32)
    torch.testing.assert_close(logits, final.mean(1) @ model.logits.T)
    assert not hasattr(model, "class_token") or model.class_token is None


@both_poolings
@pytest.mark.parametrize("arch", ["residual", "residual-free", "osp", "op", "sas-p"])
def test_nothing_but_its_position_tells_a_patch_from_another(arch: str, pooling: Pooling) -> None:
    """There is no mask: with positions that say nothing, the order of the patches says nothing."""
    quiet = classifier(arch, pooling=pooling, positions="sinusoidal", position_deviation=0.0)
    loud = classifier(arch, pooling=pooling, positions="sinusoidal", position_deviation=0.5)
    turned = images().unflatten(2, (4, 2)).flip(2).flatten(2, 3)
    for model in (quiet, loud):
        noise = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn(p.shape, generator=noise), alpha=0.1)
    torch.testing.assert_close(quiet(turned), quiet(images()), rtol=1e-4, atol=1e-5)
    assert (loud(turned) - loud(images())).abs().max() > 1e-3


def test_an_image_has_as_many_positions_as_patches_and_one_for_its_class() -> None:
    sizes = {"image": 28, "patch": 7, "layers": 1, "width": 16, "heads": 2}
    assert ModelSpec(task="vision", **sizes).length == 16
    assert ModelSpec(task="vision", pooling="class", **sizes).length == 17
    assert ModelSpec(task="language", context=9, **sizes).length == 9
