"""Image classification: against the definition, on a model that knows its digits."""

from pathlib import Path

import numpy as np
import pytest
import tiny_vit
import torch
from scipy.special import rel_entr
from scipy.special import softmax as scipy_softmax
from sklearn.metrics import log_loss
from torch import nn

from qbench.data import vision
from qbench.data.pixels import recipe
from qbench.data.vision import Images
from qbench.evaluate.classify import Classified, changes, classify
from qbench.models.folder import look
from qbench.models.hub import HubModel, load


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vit.save(tiny_vit.trained(vision.load("digits")), tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def model(folder: Path) -> nn.Module:
    return load(folder)


@pytest.fixture(scope="module")
def test() -> Images:
    return vision.load("digits").part("test")


class Table(nn.Module):
    """Answers with given logits, image after image."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.at = 0

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self.at += len(pixels)
        return self.logits[self.at - len(pixels) : self.at]


def classified(logits: np.ndarray, labels: list[int]) -> Classified:
    images = Images(
        "made", np.zeros((len(labels), 1, 2, 2), np.uint8), np.array(labels), ("a", "b", "c"), np.zeros(0, np.int8), ""
    )
    return classify(Table(torch.tensor(logits)), images, tiny_vit.RECIPE, batch=2)


def test_a_trained_model_is_read_with_its_own_preprocessing(folder: Path, model: nn.Module, test: Images) -> None:
    import json

    settings = json.loads((folder / "preprocessor_config.json").read_text())
    made = recipe(look(folder).config, settings)
    scored = classify(model, vision.as_labelled(test, model.config.id2label), made)  # type: ignore[arg-type]
    assert scored.error_rate < 0.1
    assert scored.loss < 0.4
    assert isinstance(model, HubModel)
    logits = model.hf.double()(pixel_values=tiny_vit.RECIPE.apply(test.pixels).double()).logits.detach().numpy()
    model.hf.float()
    assert scored.loss == pytest.approx(log_loss(test.labels, scipy_softmax(logits, 1)), abs=1e-6)
    assert scored.error_rate == pytest.approx((logits.argmax(1) != test.labels).mean())


def test_batches_do_not_change_what_an_image_costs(model: nn.Module, test: Images) -> None:
    one, other = (classify(model, test, tiny_vit.RECIPE, batch) for batch in (64, 7))
    np.testing.assert_allclose(one.losses, other.losses, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(one.predictions, other.predictions)


def test_divergences_are_scipys() -> None:
    random = np.random.default_rng(0)
    base, moved = random.normal(size=(6, 3)), random.normal(size=(6, 3))
    found = changes(classified(base, [0] * 6), classified(moved, [0] * 6))
    p, q = scipy_softmax(base, 1), scipy_softmax(moved, 1)
    np.testing.assert_allclose(found.vectors["kld"], rel_entr(p, q).sum(1), rtol=1e-12)
    np.testing.assert_allclose(found.vectors["kld/reverse"], rel_entr(q, p).sum(1), rtol=1e-12)
    np.testing.assert_allclose(found.vectors["delta_p"], q[:, 0] - p[:, 0], atol=1e-15)
    assert found.values["kld"] == pytest.approx(rel_entr(p, q).sum(1).mean())
    assert found.values["delta_p/rms"] == pytest.approx(np.sqrt(((q - p)[:, 0] ** 2).mean()))


def test_flips_are_told_apart_by_direction() -> None:
    """right -> right, right -> wrong, wrong -> right, wrong -> another wrong, wrong -> the same wrong."""
    before, after, labels = [0, 1, 2, 1, 2], [0, 2, 0, 2, 2], [0, 1, 0, 0, 0]
    found = changes(*(classified(5.0 * np.eye(3)[answers], labels) for answers in (before, after)))
    expected = {"top1_changed": 3 / 5, "flips": 2 / 5, "flips/to_wrong": 1 / 5, "flips/to_right": 1 / 5}
    assert {name: found.values[name] for name in expected} == expected
    assert found.vectors["flips/to_wrong"].tolist() == [0, 1, 0, 0, 0]
    assert found.vectors["flips/to_right"].tolist() == [0, 0, 1, 0, 0]


def test_a_model_compared_with_itself_has_not_changed(model: nn.Module, test: Images) -> None:
    scored = classify(model, test, tiny_vit.RECIPE)
    assert set(changes(scored, scored).values.values()) == {0.0}


def test_what_cannot_be_compared_is_refused() -> None:
    two = classified(np.eye(3)[[0, 1]], [0, 1])
    with pytest.raises(ValueError, match="same images"):
        changes(two, classified(np.eye(3)[[0, 1]], [0, 2]))
    with pytest.raises(ValueError, match="label 3"):
        classified(np.eye(3)[[0, 1]], [0, 3])
    with pytest.raises(ValueError, match="label -1"):
        classified(np.eye(3)[[0, 1]], [0, -1])
    with pytest.raises(ValueError, match="1 of 2 images have logits that are not finite"):
        classified(np.array([[0.0, 1.0, np.nan], [0.0, 1.0, 2.0]]), [0, 1])
