"""The page of a model from elsewhere: the right verdict first, nothing hidden, and no empty box."""

import re
from dataclasses import replace
from functools import cache

import pytest
from fake_probe import COSTS, compared, images, probe, weights_only
from fake_run import quickstart

from qbench.report import answer, page
from qbench.report.formats import TIERS, Format, formats, recommended
from qbench.report.view import View, view
from qbench.results.record import Attempt

RUNS = {"probe": probe, "compared": compared, "weights only": weights_only, "images": images}


@cache
def html(name: str = "probe") -> str:
    return page.render(RUNS[name]())


def text(source: str) -> str:
    """What a reader sees or hears: no markup, no data, no code."""
    source = re.sub(r"<(script|style).*?</\1>", " ", source, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", source)).replace("\u202f", " ").replace("\xa0", " ")


def seen() -> View:
    return view(probe())


def one(name: str) -> Format:
    return next(found for found in formats(seen()) if found.name == name)


def test_the_recommended_format_is_the_smallest_safe_one_of_weights_alone() -> None:
    best = recommended(formats(seen()))
    assert best is not None
    assert best.name == "int6/block:32"
    start = text(html()[: html().index("<main>")])
    assert "The smallest that is safe: int6/block:32 weights, 0.870 MB, 4.6× smaller than the files now." in start
    assert "64 windows of 256 tokens of text:val.txt" in start
    assert "tiny-llama (digest 0123456789ab)" in start


def test_where_nothing_is_safe_the_page_says_so() -> None:
    run = probe()
    cells = {
        cell: attempt
        for cell, attempt in run.cells.items()
        if treatment(attempt) in ("", "unquantized", "int4/block:32 @ weights", "int2/block:32 @ weights")
    }
    assert "Nothing measured is safe. The smallest that is costly: int4/block:32" in text(
        page.render(replace(run, cells=cells))
    )


def treatment(attempt: Attempt) -> str:
    return attempt.closing.spec["measurement"].get("treatment", {}).get("name", "")


def test_every_format_stands_on_the_first_screen_with_its_numbers() -> None:
    start = text(html()[: html().index("<main>")])
    for name, (_, kld, *_rest) in COSTS.items():
        assert name.removesuffix(" @ weights") in start
        assert (f"{kld:.4f}" if kld < 0.01 else f"{kld:.2g}") in start
    rows = re.findall(r'<th scope="row">([^<]*)', html()[: html().index("<main>")])
    sizes = [found.bytes for name in rows for found in formats(seen()) if found.name == name and found.bytes]
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == 5
    assert re.search(r"int8/channel weights: 8-bit integers per channel safe .* 98.9 % 0.6 %", start)


def test_thresholds_are_published_and_called_provisional() -> None:
    start = text(html()[: html().index("<main>")])
    assert "provisional" in start
    for word, bound in TIERS.items():
        assert word in start
        assert bound == float("inf") or f"up to {bound:g} nats" in start


def test_the_worst_part_is_a_slice_where_there_are_several() -> None:
    found = one("int4/block:32").worst
    assert found is not None
    assert found[0] == "code.py"
    assert found[1] == pytest.approx(1.3 * 0.04)
    assert "KLD by slice of the data, nats; the worst is shaded format whole prose.txt code.py " in text(html())
    assert "Worst: code.py for 8 of 8 formats." in text(html())
    assert "Worst: tokens 0–127 for 8 of 8 formats." in text(html())


def test_bytes_that_stay_have_reasons() -> None:
    found = text(html())
    assert "it is the head too (tied)" in found
    assert "a scale would cost more than it saves" in found
    assert "0.25 bits for each value treated" in found


def test_what_lies_within_noise_says_so() -> None:
    assert "−0.0010 to +0.0006 within noise" in text(html())


def test_kernels_that_differ_are_marked_and_those_that_cannot_run_say_why() -> None:
    found = text(html())
    assert "differs, by 1 % of its KLD" in found
    assert "bitsandbytes/nf4 differs: known reason" in found
    assert "torchao/float8-dynamic : needs a GPU of sm_89" in found


def test_only_layers_that_stand_out_of_their_noise_are_excluded() -> None:
    listing = next(part for part in re.findall(r"<pre[^>]*>(.*?)</pre>", html(), flags=re.S) if "ignore" in part)
    assert listing.count("model.layers.0.") == listing.count("model.layers.1.") == 3
    assert "model.layers.2." not in listing  # 0.0067 beside a standard error of 0.01
    assert "llm_int8_skip_modules" in html()


def test_outliers_are_told_apart() -> None:
    found = text(html())
    assert "15.0 times the rms of its tensor (channel 17 at blocks.3.out)" in found
    assert "4 sites of 4 have a channel above 10 times" in found
    assert "1 site of 4 have values above 100" in found
    assert "all of them at the first position" in found


def test_which_of_keys_and_values_is_harder() -> None:
    assert "Keys are harder than values under int8/channel and int4/block:32." in text(html())


def test_statistics_are_in_the_order_of_llama_cpp() -> None:
    first = re.findall(r"<pre[^>]*>(int6/block:32:.*?)</pre>", html(), flags=re.S)[0]
    order = ["Mean PPL(Q)", "Mean PPL(base)", "Mean    KLD", "Maximum KLD", "99.0%   KLD", "Median  KLD", "Same top p"]
    places = [first.index(name) for name in order]
    assert places == sorted(places)
    # One standard error of the KLD over 64 windows, from its 95 % interval of ± 5 %.
    assert re.search(r"Mean    KLD +: +0.006000 ± +0.000150", first)


@pytest.mark.parametrize("name", RUNS)
def test_there_is_no_empty_box(name: str) -> None:
    source = html(name)
    assert "<tbody></tbody>" not in source.replace("\n", "")
    assert not re.search(r"<(p|dd|figcaption|caption|h\d|pre)[^>]*></\1>", source)
    targets = re.findall(r'href="#([a-z]+)"', source)
    assert targets
    for target in targets:
        assert f'id="{target}"' in source


def test_what_was_not_measured_is_named() -> None:
    assert "Not measured in this run: tasks and optimizers." in text(html())
    compare = text(html("compared"))
    assert (
        "Not measured in this run: a front of cost and size, real kernels, which tensors are hard, outliers" in compare
    )


def test_a_comparison_says_what_quantizing_cost() -> None:
    start = text(html("compared")[: html("compared").index("<main>")])
    assert "tiny-w4, 0.657 MB, 6.1× smaller than its base: costly here." in start
    assert "quantized by gptq" in start
    assert start.count("Unquantized: loss 3.000") == 1
    assert "Unquantized: loss 3.02" not in start
    source = html("compared")
    assert re.findall(r'<tr class="first"><th scope="row">([^<]*)', source[source.index("<main>") :]) == [
        "embed",
        "model.norm",
    ]


def test_weights_alone_answer_which_are_hard() -> None:
    start = text(html("weights only")[: html("weights only").index("<main>")])
    assert "The hardest weight is blocks.1.attn.k: under int8/channel its shape costs 8.0 dB" in start
    assert "42 of 56 pairs" in start
    assert "in loss was not measured" in start
    assert "What each format does to all 28 tensors" in start


def test_images_have_an_error_rate_and_no_perplexity() -> None:
    found = text(html("images"))
    assert "error rate" in found
    assert "nats/image" in found
    assert "PPL" not in found


def test_a_run_in_which_everything_failed_says_so() -> None:
    run = probe()
    cells = {
        cell: Attempt(replace(attempt.closing, status="failed", error="no memory"), ())
        for cell, attempt in run.cells.items()
    }
    found = text(page.render(replace(run, cells=cells)))
    assert "No answer" in found
    assert "failed: no memory" in found


def test_trained_models_keep_their_page() -> None:
    assert 'class="probe"' not in page.render(quickstart())
    assert answer.lines(quickstart()) == []


def test_text_from_outside_cannot_leave_its_place() -> None:
    evil = "<script>alert(1)</script>"
    source = page.render(probe(name=evil, model_type=evil))
    assert evil not in source
    assert "&lt;script&gt;alert(1)" in source


def test_a_large_model_fits_in_a_megabyte() -> None:
    many = ("int8/channel", "int4/channel", "int4/block:32", "int4/block:128", "int3/block:32", "int2/block:32")
    source = page.render(probe(layers=80, quantizers=(*many, "nf4/block:64", "mxfp4", "nvfp4", "e4m3/channel")))
    assert len(source.encode()) < 1_000_000
    assert len(html().encode()) < 300_000


def test_the_same_run_gives_the_same_bytes() -> None:
    assert page.render(probe()) == html()


@pytest.mark.parametrize("name", RUNS)
def test_a_terminal_gets_the_answer_in_twenty_lines(name: str) -> None:
    lines = answer.lines(RUNS[name]())
    assert 3 <= len(lines) <= 20
    assert lines[-1] == "page: results/probe/report.html"
    assert not any(letter in line for line in lines for letter in "\u202f\xa0")
