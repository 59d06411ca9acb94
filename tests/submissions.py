"""Submissions made up for tests: loss cells of several models, quantizers and seeds, with their evidence."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from qbench.results import digest, evidence, origin
from qbench.results.record import Closing, Record
from qbench.results.store import Store

BITS = {"int8/token": 8.5, "int4/token": 4.5, "int4/block:32": 5.0, "int3/tensor": 3.0}
COST = {"int8/token": 0.001, "int4/token": 0.1, "int4/block:32": 0.06, "int3/tensor": 0.6}
TEXT = """submission: 1
who: {who}
model: {model}
licence: Apache-2.0
links: ["https://example.org/{name}"]
digests:
  records.jsonl: {records}
  manifest.json: {manifest}
"""


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a made-up submission holds."""

    who: str = "Ada"
    model: str = "tiny"
    arms: Sequence[str] = ("residual", "residual-free")
    quantizers: Sequence[str] = tuple(BITS)
    seeds: Sequence[int] = (0, 1, 2)
    version: int = 1
    device: str = "cpu"
    data: str = "d" * 64
    level: float = 2.0
    filler: int = 0  # records of tensors in each error cell
    windows: int = 16


def make(folder: Path, made: Made | None = None, extra: str = "") -> Path:
    """Write a submission to `folder`, `extra` at the end of its submission.yaml."""
    made = made or Made()
    cells = [(arm, seed, name) for arm in made.arms for seed in made.seeds for name in ("", *made.quantizers)]
    specs = [spec(made, *cell) for cell in cells]
    ids = [digest.of(one)[:16] for one in specs]
    asked = origin.Asked(suite="suite: small\n", cells=ids, seeds=list(made.seeds), device=made.device)
    began = origin.begin(folder, asked)
    rng = np.random.default_rng(int.from_bytes(sha256(made.model.encode()).digest()[:4]))
    with Store.open(folder) as store:
        unquantized = 0.0  # loss of the model at hand, whose first cell it is
        for one, cell, (arm, seed, name) in zip(specs, ids, cells, strict=True):
            base = made.level + 0.3 * made.arms.index(arm) + 0.02 * seed
            loss = base + COST.get(name, 0.0) + 0.01 * rng.standard_normal(made.windows)
            samples = evidence.save(folder, {"loss": loss})
            increase = {"loss_increase": float(loss.mean()) - unquantized} if name else {"floor/numerical": 2e-7}
            unquantized = unquantized if name else float(loss.mean())
            store.append(
                Closing(cell=cell, question=question(one), status="measured", spec=one),
                [loss_record(cell, name, loss, samples, increase), *filler(cell, made.filler)],
            )
    origin.finish(folder, began, {"measured": len(ids)})
    (folder / ".lock").unlink()
    return sign(folder, made.who, made.model, extra)


def sign(folder: Path, who: str = "Ada", model: str = "tiny", extra: str = "") -> Path:
    """Write submission.yaml with the digests of what is there now."""
    found = {name: sha256((folder / name).read_bytes()).hexdigest() for name in ("records.jsonl", "manifest.json")}
    text = TEXT.format(
        who=who, model=model, name=folder.name, records=found["records.jsonl"], manifest=found["manifest.json"]
    )
    (folder / "submission.yaml").write_text(text + extra)
    return folder


def spec(made: Made, arm: str, seed: int, name: str) -> dict[str, Any]:
    assign = {"activation:boundaries": name} if name else {}
    return {
        "suite": "small",
        "version": made.version,
        "arm": arm,
        "model": {
            "arch": "residual",
            "layers": 2,
            "context": 32,
            "vocabulary": 256,
            "parameters": 1000,
            "id": made.model,
        },
        "training": {"optimizer": "adamw", "steps": 10, "batch": 2},
        "seed": seed,
        "data": {"name": "stdlib", "digest": made.data},
        "torch": "2.13.0",
        "device": made.device,
        "plugins": "",
        "measurement": {
            "what": "loss",
            "windows": made.windows,
            "split": "test",
            "treatment": {"name": name or "unquantized", "scope": "boundaries" if name else "", "assign": assign},
        },
        "revisions": {"train": 1, "measure": 2, "quantizers": []},
    }


def question(one: dict[str, Any]) -> str:
    return digest.of({"data": one["data"], "measurement": one["measurement"]})[:16]


def loss_record(cell: str, name: str, loss: np.ndarray, samples: str, more: dict[str, float]) -> Record:
    mean, error = float(loss.mean()), float(loss.std(ddof=1) / len(loss) ** 0.5)
    values = {"loss": mean, "bits_per_byte": mean / np.log(2), "floor/window": error} | more
    reach = float(stats.t.ppf(0.975, len(loss) - 1)) * error
    return Record(
        cell=cell,
        values=values,
        kind="activation" if name else "",
        scope="boundaries" if name else "",
        quantizer=name,
        bits_per_value=BITS[name] if name else None,
        intervals={"loss": (mean - reach, mean + reach)},
        n=len(loss),
        samples=samples,
    )


def filler(cell: str, count: int) -> list[Record]:
    values = {"relative_error": 0.1, "error_db": -20.0, "saturated": 0.0, "levels": 15.0}
    return [Record(cell=cell, values=values, kind="activation", site=f"blocks.{i}.out", n=4) for i in range(count)]
