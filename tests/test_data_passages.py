"""Windows over documents: against lm-eval's and transformers' own ways to cut, and every byte accounted for."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.trainers import BpeTrainer

from qbench.data.documents import Document
from qbench.data.passages import Cut, Windows, overlap, passages
from qbench.data.text import BadData
from qbench.data.windows import evaluation_windows

BOS = 7


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def of(*lengths: int) -> list[Document]:
    """Documents of different letters, so that a token says where it comes from."""
    starts = np.cumsum([100, *lengths])
    texts = ["".join(chr(i) for i in range(a, a + n)) for a, n in zip(starts, lengths, strict=False)]
    return [Document(str(i), text, str(i)) for i, text in enumerate(texts)]


def predicted(windows: Windows) -> list[int]:
    return windows.tokens[:, 1:][windows.scored].tolist()


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 20), st.booleans())
def test_with_a_stride_every_token_is_predicted_once(length: int, context: int, stride: int, bos: bool) -> None:
    cut = Cut(context, stride=min(stride, context), bos=BOS if bos else None)
    (document,) = of(length)
    if length < cut.length:
        with pytest.raises(BadData, match=f"has {length} tokens; a window of context {context} needs {cut.length}"):
            passages([document], letters, cut)
        return
    windows = passages([document], letters, cut)
    assert predicted(windows) == letters(document.text)[not bos :]
    assert windows.tokens.shape == (len(windows), context + 1)
    body = windows.tokens[:, bos:]
    assert (body.diff(dim=1) == 1).all()  # the letters follow each other in the text
    assert not bos or (windows.tokens[:, 0] == BOS).all()
    assert windows.counts.sum() == windows.scored.sum() == length - (not bos)


@pytest.mark.parametrize(("length", "context"), [(40, 8), (41, 8), (47, 8), (9, 8), (64, 16)])
def test_windows_that_follow_each_other_are_lm_eval_s(length: int, context: int) -> None:
    """Its rolling log-likelihood opens a document with one prefix token and predicts each token once."""
    (document,) = of(length)
    tokens = letters(document.text)
    rolling = get_rolling_token_windows(token_list=tokens, prefix_token=BOS, max_seq_len=context, context_len=1)
    expected = [make_disjoint_window(pair) for pair in rolling]
    windows = passages([document], lambda text: [BOS, *letters(text)], Cut(context, stride=context))
    assert [row.tolist() for row in windows.tokens] == [[*before, *then] for before, then in expected]
    assert windows.counts.tolist() == [len(then) for _, then in expected]


def test_overlapping_windows_are_those_of_the_perplexity_guide_of_transformers() -> None:
    """Its loop, as documented for models of fixed length, on a text whose last window is a whole one."""
    (document,) = of(41)
    tokens, longest, stride = letters(document.text), 17, 6
    expected: list[tuple[list[int], int]] = []
    previous = 0
    for begin in range(0, len(tokens), stride):
        end = min(begin + longest, len(tokens))
        scored = end - previous  # the guide counts the first token of all, which has no prediction
        expected.append((tokens[begin:end], scored - (not begin)))
        previous = end
        if end == len(tokens):
            break
    windows = passages([document], letters, Cut(longest - 1, stride=stride))
    assert [(row.tolist(), n) for row, n in zip(windows.tokens, windows.counts, strict=True)] == expected


def test_windows_are_spread_evenly_as_over_one_split() -> None:
    (document,) = of(1000)
    windows = passages([document], letters, Cut(16, count=9))
    assert torch.equal(windows.tokens, evaluation_windows(np.array(letters(document.text)), 16, 9))
    assert windows.first.eq(0).all()
    opened = passages([document], letters, Cut(16, count=9, bos=BOS))
    assert opened.tokens[:, 0].eq(BOS).all()
    assert opened.tokens[[0, -1]][:, [1, -1]].tolist() == [[100, 115], [1084, 1099]]


def test_documents_get_windows_in_proportion_and_none_goes_without() -> None:
    cut = Cut(8, count=20)
    windows = passages(of(1000, 2000, 10, 500, 3), letters, cut)
    assert Counter(windows.slices) == {"0": 5, "1": 11, "2": 1, "3": 3}
    assert windows.left_out == ("4",)
    assert torch.equal(windows.tokens, passages(of(1000, 2000, 10, 500, 3), letters, cut).tokens)
    few = passages(of(1000, 2000, 10, 500), letters, Cut(8, count=2))
    assert Counter(few.slices) == {"0": 1, "1": 1}
    for row in windows.tokens:  # none crosses two documents
        assert len({int(np.searchsorted([1100, 3100, 3110, 3610], token, "right")) for token in row.tolist()}) == 1


def test_a_small_document_gives_no_window_twice() -> None:
    windows = passages(of(9, 300), letters, Cut(7, count=200))
    assert Counter(windows.slices)["0"] == 2
    assert len({tuple(row.tolist()) for row in windows.tokens}) == 200


def test_short_documents_of_a_slice_are_strung_together() -> None:
    short = [Document(f"chat:{i}", f"line {i}", "chat") for i in range(5)]
    windows = passages([*short, *of(50)], letters, Cut(30, stride=30))
    assert windows.slices == ("0", "0", "chat", "chat")
    assert "".join(map(chr, windows.tokens[2].tolist())) == "line 0\n\nline 1\n\nline 2\n\nline 3\n"
    assert predicted(windows)[49:] == letters("\n\n".join(d.text for d in short))[1:]


def test_counts_and_strides_that_make_no_sense_are_refused() -> None:
    for wrong in ({}, {"count": 0}, {"count": 1, "context": 0}, {"stride": 0}, {"stride": 9}):
        with pytest.raises(ValueError, match=r"window|windows|stride"):
            Cut(**{"context": 8, **wrong})
    with pytest.raises(BadData, match="100 windows of context 8 were asked for; these documents have 12 different"):
        passages(of(20), letters, Cut(8, count=100))
    with pytest.raises(BadData, match="the longest of 2 documents has 5 tokens; a window of context 8 needs 9"):
        passages(of(3, 5), letters, Cut(8, count=1))
    with pytest.raises(BadData, match="the longest of 0 documents has 0 tokens"):
        passages([], letters, Cut(8, count=1))
    assert len(passages(of(200), letters, Cut(8, stride=8, count=3))) == 3


# Bytes

TEXT = "naïve façade: 東京, 🙂 and plain words\tand  spaces. " * 30


def trained() -> Tokenizer:
    tokenizer = Tokenizer(BPE(unk_token="?"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.train_from_iterator([TEXT], BpeTrainer(vocab_size=60, special_tokens=["?"], show_progress=False))
    return tokenizer


def both(tokenizer: Tokenizer) -> tuple[Callable[[str], list[int]], Callable[[str], Any]]:
    return lambda text: tokenizer.encode(text).ids, lambda text: tokenizer.encode(text).offsets


def test_windows_hold_the_bytes_of_their_tokens() -> None:
    """This tokenizer drops spaces: they are counted all the same, or a text would shrink by being tokenized."""
    encode, offsets = both(trained())
    windows = passages([Document("a", TEXT, "a")], encode, Cut(16, stride=16, bos=BOS), offsets)
    ends = [len(TEXT[:end].encode()) for _, end in offsets(TEXT)]
    assert windows.bytes.sum() == ends[-1] == len(TEXT.encode()) - 1  # no token reads the space at the end
    assert windows.bytes.tolist()[0] == ends[15]
    assert windows.bytes.tolist()[3] == ends[63] - ends[47]
    assert windows.bytes_per_token == pytest.approx(ends[-1] / len(ends))


def test_the_first_token_is_read_and_its_bytes_are_not_counted() -> None:
    windows = passages([Document("a", "äbcdefghi", "a")], letters, Cut(4, stride=4), _each)
    assert windows.bytes.tolist() == [4.0, 4.0]
    opened = passages([Document("a", "äbcdefghi", "a")], letters, Cut(4, stride=4, bos=BOS), _each)
    assert opened.bytes.tolist() == [5.0, 4.0, 1.0]


def _each(text: str) -> list[tuple[int, int]]:
    return [(i, i + 1) for i in range(len(text))]


def test_a_token_of_no_letters_takes_no_bytes() -> None:
    """Tokenizers give such tokens the offsets (0, 0), wherever they stand."""
    offsets = [(0, 1), (1, 2), (0, 0), (2, 3), (3, 4)]
    windows = passages([Document("a", "abcde", "a")], letters, Cut(3, stride=3, bos=BOS), lambda _: offsets)
    assert windows.bytes.tolist() == [2.0, 2.0]


def test_without_offsets_bytes_are_spread_over_the_document() -> None:
    windows = passages([Document("a", "ää" * 50, "a")], letters, Cut(9, count=4, bos=BOS))
    assert windows.bytes.tolist() == pytest.approx([18.0] * 4)


def test_offsets_that_do_not_belong_to_the_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="9 tokens and 8 offsets"):
        passages(of(9), letters, Cut(4, count=1), lambda text: _each(text)[1:])


# What two sets of windows share


def chance(seed: int, n: int = 4000, vocabulary: int = 50) -> str:
    return "".join(map(chr, np.random.default_rng(seed).integers(100, 100 + vocabulary, n)))


def cut_of(text: str, **options: Any) -> Windows:
    return passages([Document("a", text, "a")], letters, Cut(**{"context": 128, "stride": 128, **options}))


def test_calibration_text_inside_the_evaluation_text_is_found() -> None:
    evaluation = cut_of(chance(0))
    inside = cut_of(chance(0)[1000:1600])
    assert overlap(evaluation, evaluation) == len(evaluation)
    assert overlap(inside, evaluation) == len(inside) == 5
    assert overlap(cut_of(chance(1)), evaluation) == 0
    mixed = cut_of(chance(1)[:645] + chance(0)[2003 : 2003 + 256 + 1])
    assert overlap(mixed, evaluation) == 3
    assert overlap(cut_of(chance(0)[1000:1040], context=20, stride=20), cut_of(chance(0), context=20, stride=20)) > 0


def test_a_shared_header_is_no_overlap() -> None:
    header = chance(9, 36)
    one, other = (cut_of(header + chance(seed)) for seed in (3, 4))
    assert overlap(one, other) == 0
    assert overlap(cut_of(header + chance(3), context=40, stride=40), cut_of(header + chance(4))) == 1


def test_the_digest_sees_tokens_shape_and_what_is_scored() -> None:
    a = cut_of(chance(0), context=16, stride=16)
    digests = {
        cut_of(chance(0), context=16, stride=16).digest,
        a.digest,
        Windows(a.tokens, a.first + 1, a.bytes, a.slices).digest,
        Windows(a.tokens + 1, a.first, a.bytes, a.slices).digest,
        cut_of(chance(0), context=17, stride=17).digest,
    }
    assert len(digests) == 4
