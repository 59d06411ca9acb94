"""The outlier map against values that were put there, and against a slow reading of its definitions."""

import math
import statistics

import pytest
import torch
from torch import Tensor

from qbench.capture.outliers import Massive, Outliers, Token, outliers
from qbench.metrics.catalog import METRICS


def noise(windows: int = 6, length: int = 20, channels: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(windows, length, channels, generator=torch.Generator().manual_seed(seed))


def by_hand(x: Tensor) -> dict[str, float]:
    """The definitions, window by window and token by token, in Python's own floats."""
    energy = [0.0] * x.shape[-1]
    peak = [0.0] * x.shape[-1]
    apart = massive = sinks = first = ordinary = 0.0
    for window in x.double().tolist():
        norms = [sum(v * v for v in token) ** 0.5 for token in window]
        typical, median = statistics.median_low(norms), statistics.median_low(abs(v) for t in window for v in t)
        first += norms[0] / typical
        for t, token in enumerate(window):
            massive += sum(abs(v) > 100 and abs(v) >= 1000 * median for v in token)
            sinks += norms[t] > 10 * typical
            if t == 0 or norms[t] > 10 * typical:
                apart += norms[t] ** 2
                continue
            ordinary += 1
            energy = [e + v * v for e, v in zip(energy, token, strict=True)]
            peak = [max(p, abs(v)) for p, v in zip(peak, token, strict=True)]
    hot = energy.index(max(energy))
    return {
        "outliers/hot_channel_energy": energy[hot] / sum(energy),
        "outliers/hot_channel_peak": peak[hot] / (sum(energy) / (ordinary * x.shape[-1])) ** 0.5,
        "outliers/massive": massive,
        "outliers/sinks": sinks / len(x),
        "outliers/first_token_norm": first / len(x),
        "outliers/energy_apart": apart / (apart + sum(energy)),
    }


def planted() -> Tensor:
    x = noise()
    x[..., 3] *= 12  # a hot channel
    x[:, 0] *= 50  # a sink at the first position
    x[2, 7, 5] = -2000.0  # a massive activation, which makes its token a sink too
    return x


def test_what_was_planted_is_found_and_kept_apart() -> None:
    found = outliers(planted())
    assert [channel.index for channel in found.channels(1)] == [3]
    assert found.channels(1)[0].peak < 60  # not that of the sinks, which have 50 times the size
    assert found.largest_massive[0] == Massive(window=2, position=7, channel=5, value=-2000.0)
    assert found.positions()[7] == (1, 1)
    assert found.positions()[0][0] == 6
    assert set(found.positions()) == {0, 7}
    assert found.values()["outliers/sinks_elsewhere"] == pytest.approx(1 / 6)
    assert found.largest_tokens[0].window == 2


@pytest.mark.parametrize("x", [noise(), planted(), noise(1, 1), noise(3, 2)], ids=["noise", "planted", "one", "two"])
def test_numbers_are_those_of_the_definitions(x: Tensor) -> None:
    if x.shape[1] == 1:  # a lone token has no neighbours to differ from: nothing is apart
        assert outliers(x).ordinary == 1
        return
    values = outliers(x).values()
    assert {name: values[name] for name in by_hand(x)} == pytest.approx(by_hand(x), rel=1e-6)


def test_maps_of_batches_add_up_to_the_map_of_all() -> None:
    x = planted()
    whole, first, *rest = outliers(x), *map(outliers, x.split([1, 3, 2]))
    parts = sum(rest, start=first)
    assert parts.values() == pytest.approx(whole.values(), rel=1e-12)
    assert parts.largest_massive == whole.largest_massive
    assert [(t.window, t.position) for t in parts.largest_tokens] == [
        (t.window, t.position) for t in whole.largest_tokens
    ]
    assert parts.positions() == whole.positions()
    assert (parts.windows, parts.tokens, parts.ordinary) == (whole.windows, whole.tokens, whole.ordinary)


def test_windows_of_several_lengths_add_up_by_position() -> None:
    short, long = noise(length=5), noise(length=9)
    long[:, 8] *= 100
    both = outliers(short) + outliers(long)
    assert both.positions() == {8: (6, 0)}
    assert both.tokens == 6 * 5 + 6 * 9


def test_memory_is_bounded_however_many_windows_come() -> None:
    x = noise(windows=40)
    x[:, 4, :] = 5000.0
    found = outliers(x)
    found = found + found
    assert len(found.largest_tokens) == len(found.largest_massive) == 16
    assert found.values()["outliers/massive"] == 2 * 40 * 16
    assert found.values()["outliers/massive_channels"] == 16


def test_the_thresholds_are_where_the_paper_has_them() -> None:
    """A magnitude of 100 is not massive, and neither is one of 101 in a window whose median is 0.2."""
    x = torch.full((3, 50, 4), 0.05)
    x[0, 9, 0] = 100.0
    x[1, 9, 0] = 101.0
    x[2] = 0.2
    x[2, 9, 0] = 101.0
    assert outliers(x).largest_massive == (Massive(1, 9, 0, 101.0),)


def test_a_window_may_come_alone_and_in_half_precision() -> None:
    x = planted()[2].bfloat16()
    alone, batched = outliers(x), outliers(x[None].float())
    assert alone.values() == batched.values()
    assert isinstance(alone.largest_tokens[0], Token)


def test_every_value_is_in_the_catalog() -> None:
    assert set(outliers(noise()).values()) <= set(METRICS)
    assert outliers(torch.zeros(2, 3, 4)).values() == dict.fromkeys(outliers(noise()).values(), 0.0)


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (torch.zeros(3), r"found \(3,\)"),
        (torch.zeros(0, 3, 4), r"found \(0, 3, 4\)"),
        (torch.full((2, 3, 4), torch.inf), "finite"),
        (torch.full((2, 3, 4), torch.nan), "finite"),
    ],
)
def test_what_cannot_be_mapped_is_refused(x: Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        outliers(x)


def test_two_places_do_not_add_up() -> None:
    with pytest.raises(ValueError, match="16 and 8 channels"):
        _: Outliers = outliers(noise()) + outliers(noise(channels=8))


def test_beside_zeros_nothing_is_a_sink_and_every_number_is_finite() -> None:
    x = torch.zeros(1, 8, 4)
    x[0, 0], x[0, 3] = 50, 1
    found = outliers(x)
    assert all(math.isfinite(value) for value in found.values().values())
    assert found.values()["outliers/first_token_norm"] == 0
    assert all(math.isfinite(token.norm) for token in found.largest_tokens)
