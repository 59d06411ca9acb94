"""A reference saved to a file: what a model says of texts, so that candidates are compared without loading it."""

from pathlib import Path

from qbench.data.catalog import stored_name
from qbench.evaluate.reference import BadReference
from qbench.evaluate.reference import save as write
from qbench.models.hub import LoadOptions, load
from qbench.suite.expand import CONTEXT
from qbench.suite.found import data_digest, found_model
from qbench.suite.judges import Texts
from qbench.suite.subject import Source, judge
from qbench.suite.value import Pretrained


def save(model: str, data: str, out: Path, *, windows: int, trust: bool = False) -> str:
    """Score `model` on `windows` windows of `data` and keep its answers in `out`; says what was kept.

    Raises BadModel, BadData, CannotWrite, and BadReference for a model whose answers cannot be kept.
    """
    found = found_model(Pretrained(source=model))
    context = min(int(found.model["context"] or CONTEXT), CONTEXT)
    source = Source(found.source, found.model["task"])
    judging = judge(source, data, windows, {"context": context, "bos": "auto"})
    if not isinstance(judging, Texts):
        raise BadReference(f"{model}: a reference is of texts; compare image classifiers in one run")
    meta = {
        "model": str(found.model["digest"]),
        "tokenizer": str(found.model["tokenizer"]),
        "data": f"{stored_name(data)} {data_digest(data)}",
        "windows_digest": judging.windows.digest,
    }
    live = load(found.source, LoadOptions(trust_remote_code=trust))
    write(live, judging.windows, out, meta)
    size = out.stat().st_size / 2**20
    return f"{len(judging.windows)} windows of context {context} of {stored_name(data)}, {size:.1f} MB"
