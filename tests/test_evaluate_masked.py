"""Masked language models: the question is the same for everyone, and its score is the definition's."""

from hashlib import blake2b

import numpy as np
import pytest
import random_models
import torch
from torch import Tensor

from qbench.data.passages import Windows
from qbench.data.text import BadData
from qbench.evaluate.divergence import divergence
from qbench.evaluate.likelihood import likelihood, numerical_floor
from qbench.evaluate.masked import Masking, Reader, ask
from qbench.evaluate.reference import references
from qbench.models.hub import HubModel

MASK, CLS = 4, 1
MASKING = Masking(MASK, spared=frozenset({0, CLS, 2, 3}))


def windows(n: int = 9, length: int = 33, first: int = 0) -> Windows:
    tokens = torch.randint(5, random_models.VOCABULARY, (n, length), generator=torch.Generator().manual_seed(1))
    tokens[:, 0] = CLS
    return Windows(tokens, torch.full((n,), first), np.full(n, 2.0 * (length - 1 - first)), ("a",) * n)


@pytest.fixture(scope="module", params=random_models.MASKED)
def model(request: pytest.FixtureRequest) -> HubModel:
    return HubModel(random_models.build(request.param), "masked-lm")


def by_definition(model: HubModel, tokens: Tensor, hidden: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Loss and error rate of each window, position by position from float64 logits of the library's own call."""
    read = tokens[:, :-1].clone()
    read[hidden] = MASK
    logits = model.hf.double()(input_ids=read).logits.detach().numpy()
    model.hf.float()
    losses, errors = [], []
    for n in range(len(tokens)):
        rows = [(logits[n, t], int(tokens[n, t])) for t in np.flatnonzero(hidden[n].numpy())]
        losses.append(np.mean([np.log(np.exp(z - z.max()).sum()) + z.max() - z[goal] for z, goal in rows]))
        errors.append(np.mean([z.argmax() != goal for z, goal in rows]))
    return np.array(losses), np.array(errors)


def test_a_window_has_the_mean_cross_entropy_of_its_hidden_tokens(model: HubModel) -> None:
    asked = ask(windows(), MASKING)
    hidden = MASKING.hidden(asked.tokens[:, :-1])
    losses, errors = by_definition(model, asked.tokens, hidden)
    scored = likelihood(Reader(model, MASKING), asked, batch=4)
    np.testing.assert_allclose(scored.losses, losses, rtol=2e-6)
    np.testing.assert_allclose(scored.errors, errors, rtol=0, atol=1e-12)
    assert scored.counts is not None
    assert scored.counts.tolist() == hidden.sum(1).tolist() == [5] * 9  # 15 % of 31 ordinary tokens
    assert numerical_floor(Reader(model, MASKING), asked, scored) < 1e-5


def test_divergence_counts_the_hidden_tokens_only(model: HubModel) -> None:
    """KL by the definition, from float64 softmaxes of both models at the hidden positions."""
    asked = ask(windows(), MASKING)
    hidden = MASKING.hidden(asked.tokens[:, :-1])
    reader = Reader(model, MASKING)
    reference = references(reader, asked)
    read = asked.tokens[:, :-1].masked_fill(hidden, MASK)
    weight = next(p for name, p in sorted(model.hf.named_parameters()) if "query.weight" in name)
    kept = weight.detach().clone()
    with torch.no_grad():
        before = model.hf(input_ids=read).logits[hidden].double().log_softmax(-1)
        weight.mul_(0.5)
        after = model.hf(input_ids=read).logits[hidden].double().log_softmax(-1)
        found = divergence(reader, asked, reference).values()
        weight.copy_(kept)
    assert found["kld"] == pytest.approx(float((before.exp() * (before - after)).sum(-1).mean()), rel=1e-3)
    assert found["kld"] > 1e-6


def test_what_is_hidden_depends_on_the_window_alone() -> None:
    given = windows().tokens[:, :-1]
    hidden = MASKING.hidden(given)
    assert torch.equal(MASKING.hidden(given.flip(0)), hidden.flip(0))
    assert torch.equal(MASKING.hidden(given[3:4]), hidden[3:4])
    other = Masking(MASK, seed=1, spared=MASKING.spared).hidden(given)
    assert not torch.equal(other, hidden)
    assert torch.equal(hidden.sum(1), other.sum(1))


def test_the_hash_is_splitmix64_of_a_keyed_digest() -> None:
    """On every machine and in every release the same places, or stored results lose their meaning."""
    window = list(range(5, 37))
    data = b"".join(token.to_bytes(8, "little") for token in window)
    key = int.from_bytes(blake2b(data, digest_size=8, key=b"0").digest(), "little")

    def number(place: int) -> int:
        z = (key + (place + 1) * 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    expected = sorted(sorted(range(1, 32), key=number)[:5])
    assert np.flatnonzero(MASKING.hidden(torch.tensor([window]))[0].numpy()).tolist() == expected


def test_positions_are_hidden_equally_often() -> None:
    tokens = torch.randint(5, 97, (2000, 40), generator=torch.Generator().manual_seed(2))
    rates = MASKING.hidden(tokens).double().mean(0)
    assert rates[0] == 0
    expected = round(0.15 * 39) / 39
    spread = (expected * (1 - expected) / 2000) ** 0.5
    assert ((rates[1:] - expected).abs() < 4 * spread).all()


def test_special_tokens_stay_and_the_share_is_of_the_others() -> None:
    tokens = windows().tokens[:, :-1].clone()
    tokens[:, 10:] = 3
    hidden = MASKING.hidden(tokens)
    assert hidden.sum(1).tolist() == [1] * 9  # of 9 ordinary tokens
    assert not hidden[:, 10:].any()
    with pytest.raises(BadData, match="nothing but special tokens"):
        MASKING.hidden(torch.full((1, 8), 3))
    every = Masking(MASK, share=1.0, spared=MASKING.spared).hidden(tokens)
    assert every[:, 1:10].all()


def test_overlapping_windows_score_what_is_new_in_them() -> None:
    plain, late = (ask(windows(first=first), Masking(MASK, share=0.5, spared=MASKING.spared)) for first in (0, 16))
    assert not late.scored[:, :16].any()
    assert torch.equal(late.scored[:, 16:], plain.scored[:, 16:])
    assert late.digest != plain.digest
    np.testing.assert_allclose(late.bytes, 2.0 * late.counts)
    with pytest.raises(BadData, match="windows score no hidden token"):
        ask(windows(first=31), MASKING)


def test_a_masking_that_hides_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="found 0"):
        Masking(MASK, share=0)
