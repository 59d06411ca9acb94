"""`import qbench as qb` as a notebook uses it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from by_hand import small, tokens
from notebook import Notebook
from torch import nn

import qbench as qb
from qbench.capture import places
from qbench.capture.sites import own, resolve
from qbench.metrics.error import error_values
from qbench.names import UnknownName
from qbench.quant.catalog import QUANTIZERS
from qbench.quant.spec import QuantizerName
from qbench.quant.sweep import sweep as sweep_sums
from qbench.results.demo import unpack


@pytest.fixture
def notebook() -> Notebook:
    book = Notebook()
    book.cell("import qbench as qb, torch; from torch import nn")
    book.cell("x = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))")
    return book


def python(source: str) -> str:
    command = [sys.executable, "-W", "error", "-c", source]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_loads_neither_torch_nor_numpy() -> None:
    loaded = json.loads(python("import sys, json, qbench as qb; dir(qb); print(json.dumps(sorted(sys.modules)))"))
    assert "qbench" in loaded
    assert {"torch", "numpy", "pandas", "duckdb", "pydantic"}.isdisjoint(loaded)


def test_opening_a_run_needs_no_torch_and_without_torch_the_rest_says_what_to_install(tmp_path: Path) -> None:
    folder = unpack(tmp_path / "run")
    source = f"""
import sys
sys.modules["torch"] = None  # as if it were not installed
import qbench as qb
run = qb.open({str(folder)!r})
assert sum(1 for _ in run.records(metric="loss")) > 10
try:
    qb.quantizer("int4/token")
except ModuleNotFoundError as error:
    print(error)
"""
    assert python(source) == "qbench.quantizer needs torch: pip install 'qbench-suite[run]'\n"


def test_the_names_are_listed_and_others_are_taught() -> None:
    assert dir(qb) == sorted(qb.__all__)
    assert all(callable(getattr(qb, name)) for name in qb.__all__)
    with pytest.raises(AttributeError, match=r"'qbench' has no attribute 'nonsense'; it has open, probe, quantized"):
        qb.nonsense  # noqa: B018
    assert not hasattr(qb, "_repr_html_")


def test_a_folder_without_a_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere holds no records\.jsonl; name the folder") as caught:
        qb.open(tmp_path / "nowhere")
    assert type(caught.value).__name__ == "NoRun"


def test_quantizers_encode_decode_and_count_their_bits(notebook: Notebook) -> None:
    notebook.cell('q = qb.quantizer("int4/block:32")')
    assert notebook.cell("e = q.encode(x); e.bits_per_value == q.bits_per_value(x.shape)")
    assert notebook.cell("q.bits_per_value(x.shape)") == 4 + 32 / 32
    assert notebook.cell("torch.equal(q.decode(e), q.roundtrip(x))")
    assert notebook.cell("e.codes.dtype, x.numel() <= 2 * e.codes.numel() < 2 * x.numel()") == (torch.uint8, True)
    assert notebook.cell("q.codes(x).numel() == x.numel(), q.codes(x).unique().numel() <= 15") == (True, True)
    assert notebook.cell("(q.roundtrip(x) - x).norm() / x.norm()") < 0.15
    with pytest.raises(ValueError, match="'int4/tokn': granularity 'tokn'; did you mean 'token'"):
        notebook.cell('qb.quantizer("int4/tokn")')


def test_a_quantizer_can_be_trained_through(notebook: Notebook) -> None:
    notebook.cell('y = x.clone().requires_grad_(); q = qb.quantizer("int4/token"); z = q.fake(y)')
    assert notebook.cell("torch.equal(z, q.roundtrip(x))")
    notebook.cell("w = torch.linspace(-1, 1, x.numel()).view_as(x); (z * w).sum().backward()")
    assert notebook.cell("torch.equal(y.grad, w)")
    notebook.cell('y.grad = None; b = qb.quantizer("int2/token"); (q.fake(y, b) * w).sum().backward()')
    assert notebook.cell("torch.equal(y.grad, b.roundtrip(w))")


def test_a_sweep_has_the_numbers_of_a_suite(notebook: Notebook) -> None:
    found = notebook.cell('qb.sweep(x, ["int4/token", "e2m1/block:32/pow2/scale:e8m0", "int8/channel"])')
    assert list(found) == ["int4/token", "mxfp4", "int8/channel"]  # canonical names
    assert found["mxfp4"]["bits_per_value"] == 4.25
    sums = sweep_sums(notebook.names["x"], ["int4/token"])["int4/token"]
    expected = error_values(sums, found["int4/token"]["bits_per_value"], 4, None)
    assert expected.items() <= found["int4/token"].items()
    assert abs(found["int4/token"]["shape_loss_db"]) < 0.5
    assert list(notebook.cell('qb.sweep(x, "int4/token")')) == ["int4/token"]
    rows = notebook.cell('qb.sweep(x, ["int8/channel"], channel_axis=0)')
    assert rows["int8/channel"]["bits_per_value"] == pytest.approx(8 + 32 / 96)
    turned = notebook.cell('qb.sweep(x.T.contiguous(), ["int8/channel"])')
    assert rows["int8/channel"]["error_db"] == pytest.approx(turned["int8/channel"]["error_db"], abs=1e-4)
    assert rows["int8/channel"]["error_db"] != pytest.approx(found["int8/channel"]["error_db"], abs=1e-3)
    assert found["int8/channel"]["bits_per_value"] == pytest.approx(8 + 32 / 64)
    assert set(notebook.cell(f"qb.sweep(x, {list(QUANTIZERS)})")) == {str(row.spec) for row in QUANTIZERS.values()}


def test_the_shape_of_a_tensor(notebook: Notebook) -> None:
    assert abs(notebook.cell("qb.shape(x)")["excess_kurtosis/tensor"]) < 0.3
    assert notebook.cell("qb.shape(x**3)")["excess_kurtosis/tensor"] > 10
    assert notebook.cell("qb.shape(torch.ones(3))")["rms"] == 1
    with pytest.raises(ValueError, match="has no values"):
        notebook.cell("qb.shape(torch.ones(0))")


def test_probing_our_own_model() -> None:
    model, windows = small("residual-free").train(), tokens(20)
    model.blocks[1].eval()
    modes = [module.training for module in model.modules()]
    found = qb.probe(model, windows, ["int8/token", "mxfp4"])
    assert list(found.shape) == list(found.error) == list(model.sites())
    assert [module.training for module in model.modules()] == modes
    only = qb.probe(model, windows, ["mxfp4"], sites="boundaries")
    assert list(only.shape) == ["blocks.0.out", "blocks.1.out"]
    assert only.shape["blocks.0.out"] == found.shape["blocks.0.out"]
    worst = max(found.error, key=lambda site: found.error[site]["mxfp4"]["error_db"])
    assert found.worst("mxfp4") == worst
    lines = repr(found).splitlines()
    assert lines[0].split("  ")[0] == "place"
    assert lines[0].endswith("SQNR dB mxfp4")
    assert len(lines) == 1 + len(found.shape)
    assert f"{-found.error['logits']['mxfp4']['error_db']:.2f}" == lines[-1].split()[-1]
    with pytest.raises(UnknownName, match=r"no activation site 'blocks\.\*\.mlp\.hiden'; did you mean"):
        qb.probe(model, windows, sites="blocks.*.mlp.hiden")


def test_probing_a_foreign_model_names_its_leaf_modules(notebook: Notebook) -> None:
    notebook.cell("""
act = nn.ReLU(inplace=True)
net = nn.Sequential(nn.Linear(96, 32), act, nn.Sequential(nn.Linear(32, 16), nn.Dropout(0.9)), act)
found = qb.probe(net, x, ["int8/token"])
""")
    found = notebook.names["found"]
    # A module that is used twice is two places: they may differ in width, and in what flows there.
    assert list(found.shape) == ["0", "1", "2.0", "2.1", "1#2"]
    assert notebook.cell("torch.equal(net.train()[0].weight, net[0].weight) and net.training")
    x = notebook.names["x"]
    with torch.no_grad():
        hidden = notebook.names["net"][0](x)
    assert found.shape["0"]["rms"] == pytest.approx(hidden.square().mean().sqrt().item(), rel=1e-5)
    assert found.shape["1"]["rms"] == pytest.approx(hidden.relu().square().mean().sqrt().item(), rel=1e-5)
    assert found.shape["2.1"] == found.shape["2.0"]  # evaluation mode: no dropout
    assert list(qb.probe(nn.Linear(96, 4), x).shape) == ["model"]
    with pytest.raises(UnknownName, match=r"no activation place '2\.3'; did you mean '2\.1'\? known: 0, 1, 2\.0, 2\.1"):
        notebook.cell('qb.probe(net, x, sites="2.3")')


def test_outputs_that_are_no_single_tensor_are_passed_over() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.rnn, self.head = nn.Embedding(32, 8), nn.GRU(8, 8, batch_first=True), nn.Linear(8, 3)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.rnn(self.table(ids))[0])

    found = qb.probe(Tagger(), tokens(4), ["int8/token"])
    assert list(found.shape) == ["table", "head"]
    none = qb.probe(Tagger(), tokens(4), sites="rnn")
    assert none.shape == {}
    assert repr(none).split("  ") == ["place", "excess kurtosis/token", "crest dB"]


def test_a_probe_in_a_notebook_is_an_escaped_table() -> None:
    net = nn.Sequential()
    net.add_module("<script>alert(1)</script>", nn.Linear(8, 8))
    html = qb.probe(net, torch.ones(2, 8), ["int8/token"])._repr_html_()
    assert "<script>" not in html
    assert "<td>&lt;script&gt;alert(1)&lt;/script&gt;</td>" in html
    assert html.count("<tr>") == html.count("</tr>") == 2


def test_running_with_quantized_tensors(notebook: Notebook) -> None:
    model, read = small("residual"), tokens(3)
    notebook.names |= {"model": model, "read": read}
    notebook.cell("""
plain = model(read)
with qb.quantized(model, {"activation:blocks.*.mlp.in": "int8/token", "weight:blocks.0.**": "int4/channel"}) as seen:
    changed = model(read)
""")
    assert set(notebook.names["seen"].places) == {
        *(f"activation:blocks.{i}.mlp.in" for i in range(2)),
        *(f"weight:blocks.0.{m}" for m in ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.pre", "mlp.out")),
    }
    assert notebook.cell("seen.warnings()") == ()
    assert notebook.cell("seen.levels") > 16
    assert notebook.cell("torch.equal(model(read), plain), torch.equal(changed, plain)") == (True, False)
    w = model.weights()["blocks.0.mlp.pre"].detach()
    with qb.quantized(model, {"weight:weights": "int4/channel"}):  # a channel of a matrix is an output
        inside = model.weights()["blocks.0.mlp.pre"].detach().clone()
    scale = w.abs().amax(1, keepdim=True) / 7
    torch.testing.assert_close(inside, (w / scale).round() * scale, rtol=1e-5, atol=1e-7)


def test_each_place_gets_the_quantizer_of_its_key() -> None:
    model = small("residual")
    assign = {
        "activation:linear": "int8/token",
        "activation:blocks.1.mlp.in": "mxfp4",
        "gradient:boundaries": "int2/token",
    }
    with qb.quantized(model, assign) as seen:
        model(tokens(3)).square().sum().backward()
    bits = {place: one.bits / one.values for place, one in seen.places.items()}
    assert bits["activation:blocks.1.mlp.in"] == qb.quantizer("mxfp4").bits_per_value((3, 12, 16))  # the later key
    assert bits["activation:blocks.0.mlp.in"] == 8 + 32 / 16
    assert bits["gradient:blocks.0.out"] == bits["gradient:blocks.1.out"] == 2 + 32 / 16
    assert len(bits) == 2 * 4 + 2
    assert seen.warnings() == ()


@pytest.mark.parametrize("pattern", ["blocks.*.out", "boundaries", "blocks.**.out", "linear", "blocks.1.in", "**"])
def test_a_key_means_what_it_means_in_a_suite(pattern: str) -> None:
    model = small("residual")
    with qb.quantized(model, {f"activation:{pattern}": "int8/token"}) as seen:
        model(tokens(2))
    wanted = resolve(pattern, "activation", own("residual", 2))
    assert set(seen.places) == {f"activation:{site}" for site in wanted}
    assert set(qb.probe(model, tokens(2), ["int8/token"], sites=pattern).shape) == set(wanted)


def test_the_same_patterns_select_in_a_foreign_model() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Conv1d(1, 1, 1)))
    assert places.select(net, "activation", "*") == ("0",)
    assert places.select(net, "activation", "1.*") == ("1.0", "1.1")
    assert places.select(net, "weight", "**") == ("0", "1.0")  # a convolution has no matrix [out, in]
    with pytest.raises(UnknownName, match=r"no weight place '1'; known: 0, 1\.0"):
        places.select(net, "weight", "1")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("activation:blocks.*.mlp.inn", r"did you mean 'blocks\.\*\.mlp\.in'\?"),
        ("weight:blocks.0.*", r"did you mean 'blocks\.0\.\*\*'\?"),
        ("weight:blocks.0.mlp.hidden", r"no weight site 'blocks\.0\.mlp\.hidden'"),
        ("blocks.0.out", "expected activation:PATTERN"),
        ("activations:blocks.0.out", "expected activation:PATTERN"),
    ],
)
def test_a_key_that_names_nothing_is_taught_and_touches_nothing(key: str, message: str) -> None:
    model = small("residual")
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with (
        pytest.raises(ValueError, match=message),
        qb.quantized(model, {"weight:weights": "int4/channel", key: "mxfp4"}),
    ):
        pass
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not any(module._forward_hooks for module in model.modules())


def test_a_matrix_that_two_modules_share_is_quantized_once() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(16, 8), "head": nn.Linear(8, 16, bias=False)})
    model["head"].weight = model["embed"].weight
    once = qb.quantizer("int4/token/rms", 0).roundtrip(model["head"].weight.detach())
    with qb.quantized(model, {"weight:**": "int4/token/rms"}) as engagement:
        assert torch.equal(model["head"].weight, once)
    assert engagement.values("weight") == 128
    assert list(engagement.places) == ["weight:embed"]


def test_what_is_no_tensor_and_no_name_is_refused() -> None:
    with pytest.raises(TypeError, match="a torch tensor is wanted, found list"):
        qb.sweep([1.0, 2.0], ["int4/token"])  # type: ignore[arg-type]
    with pytest.raises(QuantizerName, match="None"):
        qb.quantizer(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a probe needs windows"):
        qb.probe(small("residual"), tokens(2)[:0])


def test_one_name_is_one_quantizer_and_any_spelling_finds_it() -> None:
    found = qb.probe(small("residual"), tokens(2), "int4.narrow/token")
    assert set(next(iter(found.error.values()))) == {"int4/token"}
    assert found.worst("int4.narrow/token") == found.worst("int4/token")


def test_narrow_floats_have_a_shape() -> None:
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).to(torch.float8_e4m3fn)
    assert qb.shape(x) == pytest.approx(qb.shape(x.float()), rel=1e-6)
