"""`qbench import`: numbers that another tool measured become records of a run folder."""

import argparse
from pathlib import Path

from qbench.cli.main import GOOD


def bring(options: argparse.Namespace) -> int:
    """Every file is read before anything is stored: one mistake, and nothing is."""
    from qbench.evaluate import imported, lm_eval_files, samples

    found = [
        one
        for path in map(Path, options.files)
        for one in (lm_eval_files.read(path) if lm_eval_files.is_result(path) else [samples.read(path)])
    ]
    imported.store(found, options.out)
    for one in found:
        for warning in one.warnings:
            print(f"warning: {warning}")
    counts = ", ".join(f"{record.n} of {one.model['name']}" for one in found for record in one.records[:1])
    print(f"{options.out}: {len(found)} {'cell' if len(found) == 1 else 'cells'} (samples: {counts})")
    return GOOD
