"""A policy file is read as it is meant, or each of its mistakes is named with its line."""

from datetime import date
from pathlib import Path

import pytest
from gates import HEAD

from qbench.gate.policy import BadPolicy, load, shipped
from qbench.metrics.catalog import METRICS

RULE = "  - {metric: loss, margin: 0.1}\n"


def said(folder: Path, text: str) -> list[str]:
    path = folder / "p.yaml"
    path.write_text(text)
    with pytest.raises(BadPolicy) as caught:
        load(path)
    return [line.removeprefix(f"{path}:") for line in str(caught.value).splitlines()]


def test_everything_a_policy_may_say(tmp_path: Path) -> None:
    text = HEAD + (
        "note: n\nprovisional: true\ndevice: [cpu, 'cuda:*']\nmax_age_days: 9\nalpha: 0.01\n"
        "against: [previous, anchor]\n"
        f"data: {'a' * 64}\nbaselines: {{previous: {{lock: l.json}}, anchor: {{digest: {'b' * 64}}}}}\n"
        "rules:\n"
        "  - {name: r, metric: kld, arm: m, scope: weights, quantizer: int8/channel, margin: 0.1, alpha: 0.02,\n"
        "     minimum_n: 600, seeds: 3, worst_slice: true, tier: warn, on_missing: fail, on_inconclusive: warn}\n"
        "  - {metric: loss, format: W4A8, margin: {relative: 0.01}, against: unquantized}\n"
        "waivers: [{rule: r, owner: ann, reason: why, expires: 2027-01-31}]\n"
    )
    (tmp_path / "p.yaml").write_text(text)
    found = load(tmp_path / "p.yaml")
    first, second, third = found.rules
    assert (first.name, second.name) == ("r (against previous)", "r (against anchor)")
    assert (first.alpha, first.minimum_n, first.seeds, first.worst_slice, first.tier) == (0.02, 600, 3, True, "warn")
    assert (first.missing_fails, first.warn_inconclusive, first.quantizer) == (True, True, "int8/channel")
    assert (third.name, third.alpha, third.margin, third.relative) == ("loss of W4A8", 0.01, 0.01, True)
    assert found.waivers[0].expires == date(2027, 1, 31)
    assert found.previous is not None
    assert found.previous.path == tmp_path / "l.json"
    assert found.anchor is not None
    assert found.anchor.digest == "b" * 64
    assert (found.windows, found.device, found.max_age_days) == ((512, 2048), ("cpu", "cuda:*"), 9)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("{metric: los, margin: 1}", "6:14: rules.0.metric: no metric 'los'; did you mean 'loss'?"),
        ("{metric: perplexity, margin: 1}", "has no number for each window, and so no test; gate loss"),
        ("{metric: kld/p99, margin: 1}", "gate kld"),
        ("{metric: loss/worst_slice, margin: 1}", "worst_slice: true"),
        ("{metric: excess_kurtosis/token, margin: 1}", "is no cost"),
        ("{metric: loss}", "either a margin or at_most"),
        ("{metric: loss, margin: 1, at_most: 2}", "either a margin or at_most"),
        ("{metric: loss, at_most: 2}", "loss is sampled"),
        ("{metric: loss, margin: 0}", "give a margin above 0"),
        ("{metric: loss, margin: -1}", "at least 0"),
        ("{metric: kld, margin: {relative: 0.1}}", "give an absolute margin"),
        ("{metric: loss, margin: {absolute: 1, relative: 1}}", "absolute or relative"),
        ("{metric: bits_per_value, margin: 1}", "give at_most, or against: previous"),
        ("{metric: loss, margin: 1, alpha: 0.5}", "at most 0.2"),
        ("{metric: loss, margin: 1, on_missing: pass}", "allowed: fail, error"),
        ("{metric: loss, margin: 1, on_inconclusive: pass}", "allowed: fail, warn"),
        ("{metric: loss, margin: 1, teir: warn}", "unknown key; did you mean 'tier'?"),
        ("{metric: loss, margin: 1, tier: warn}", "needs at least one of tier: block"),
        ("{metric: loss, margin: .nan}", "not a finite number"),
        ("{metric: loss, margin: yes}", "found 'yes'"),
    ],
)
def test_a_mistake_in_a_rule_is_named_with_its_place(tmp_path: Path, rule: str, message: str) -> None:
    lines = said(tmp_path, f"{HEAD}rules:\n  - {rule}\n")
    assert any(message in line for line in lines), lines
    assert lines[0].startswith(("6:", "5:"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("[]", "a policy is a mapping"),
        ("policy: p\n", "version is missing"),
        (HEAD.replace("[512, 2048]", "[2048, 512]") + f"rules:\n{RULE}", "larger than the one before"),
        (HEAD + "rules: []\n", "at least 1"),
        (HEAD + f"rules:\n{RULE}{RULE}", "a second rule called 'loss'"),
        (HEAD + f"data: abc\nrules:\n{RULE}", "64 hex digits"),
        (HEAD + f"rules:\n{RULE}waivers: [{{rule: x, owner: a, reason: b, expires: 2027-01-01}}]\n", "no rule 'x'"),
        (HEAD + f"rules:\n{RULE}waivers: [{{rule: loss, owner: a, reason: b, expires: soon}}]\n", "a day like"),
        (HEAD + f"rules:\n{RULE}waivers: [{{rule: loss, owner: a, expires: 2027-01-01}}]\n", "reason is missing"),
        (HEAD + f"baselines: {{last: {{}}}}\nrules:\n{RULE}", "unknown key"),
    ],
)
def test_a_mistake_in_a_policy_is_named(tmp_path: Path, text: str, message: str) -> None:
    lines = said(tmp_path, text)
    assert any(message in line for line in lines), lines


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    lines = said(tmp_path, HEAD + "rules:\n  - {metric: los, margin: 1}\n  - {metric: loss}\n")
    assert [line.split(":")[0] for line in lines] == ["6", "7"]


def test_a_policy_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadPolicy, match="did you mean 'w8-lossless'"):
        load("w8-losless")
    with pytest.raises(BadPolicy, match="no such file"):
        load("x" * 5000)


def test_shipped_policies_say_that_their_margins_are_provisional() -> None:
    assert {"w8-lossless", "w4-standard", "kv8", "regression"} <= set(shipped())
    for name in shipped():
        found = load(name)
        assert found.name == name
        assert found.provisional
        assert all(METRICS[rule.metric].role == "cost" for rule in found.rules)
