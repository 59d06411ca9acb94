"""A small model with something to read, and cells that ask about it."""

from typing import Any

import numpy as np
from by_hand import small

from qbench.data.text import Corpus
from qbench.models.spec import Wiring
from qbench.suite.answer import Subject
from qbench.suite.cells import Cell, Measurement
from qbench.suite.material import Text
from qbench.suite.readers import TextReader


def subject(wiring: Wiring = "residual") -> Subject:
    model = small(wiring)
    text = np.random.default_rng(0).integers(0, 32, 4000).astype(np.uint8)
    corpus = Corpus("made up", "", train=text, tune=text, test=text[::-1].copy())
    return Subject(model, model.spec, TextReader(Text(corpus), model.spec), "cpu")


def cell(measurement: Measurement, **changed: Any) -> Cell:
    parts: dict[str, Any] = {
        "suite": "test",
        "version": 1,
        "arm": "residual",
        "model": {"arch": "residual"},
        "training": {},
        "seed": 0,
        "data": "made up",
        "data_digest": "",
        "torch_version": "",
        "device": "cpu",
        "plugins_digest": "",
        "measurement": measurement,
        "revisions": {},
    }
    return Cell(**parts | changed)
