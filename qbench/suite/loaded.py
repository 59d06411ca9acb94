"""Entries of `models` that name a model trained elsewhere: a folder, or a name on the hub."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import PurePath

from qbench.capture.families import site_names
from qbench.models.folder import BadModel, look
from qbench.names import suggestion
from qbench.suite.findings import Findings, Path
from qbench.suite.form import LOADING, ModelEntry, settings
from qbench.suite.value import PRETRAINED, Arm, Pretrained

_HUB = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")  # owner/name, or a name alone
_ALLOWED = ("name", *LOADING)

FromSuite = Callable[[str, Path], str]  # a path that stands in the file, as an absolute one


@dataclass(frozen=True, slots=True)
class Loaded:
    """One entry at `path` of the file, and where its mistakes go."""

    entry: ModelEntry
    findings: Findings
    path: Path
    absolute: FromSuite

    def arm(self) -> Arm | None:
        """The arm; None where the entry has a mistake that leaves nothing to look at."""
        for key in settings(self.entry):
            if key not in _ALLOWED:
                text = f"a model that is loaded is neither built nor trained; allowed: {', '.join(_ALLOWED)}"
                self.findings.add((*self.path, key), text, key=True)
        model = self._model(self.entry.load) if self.entry.load else None
        if model is None:  # nothing stands after load: said already, of the parameter that holds nothing
            return None
        entry = self.entry
        name = entry.name or PurePath(model.source).name
        saved = self.absolute(entry.reference, (*self.path, "reference"))
        reference = saved if entry.reference and os.path.isfile(saved) else entry.reference
        return Arm(name=name, arch=PRETRAINED, model=model, training=None, seeds=(0,), reference=reference)

    def _model(self, source: str) -> Pretrained | None:
        where = (*self.path, "load")
        folder = self.absolute(source, where)
        entry = self.entry
        made = Pretrained(
            source=source,
            revision=entry.revision,
            dtype=entry.dtype,
            attention=entry.attention,
            device_map=entry.device_map,
        )
        if not os.path.exists(folder):
            if _HUB.fullmatch(source) and not source.startswith("."):
                return made
            text = f"no folder {source!r}; expected a folder with config.json and safetensors, or owner/name on the hub"
            self.findings.add(where, text)
            return None
        if entry.revision:
            self.findings.add((*self.path, "revision"), "a folder has no revisions; its digest says which it is")
        try:
            config = look(folder).config
        except BadModel as error:
            self.findings.add(where, str(error))
            return None
        return replace(made, source=folder, config=config, names=site_names(config))


def check_references(arms: tuple[Arm, ...], findings: Findings, places: tuple[Path, ...]) -> None:
    """Each `reference` is a file that was saved, or names another arm that is loaded and has none of its own."""
    by_name = {arm.name: arm for arm in arms}
    for arm, path in zip(arms, places, strict=True):
        if not arm.reference or os.path.isfile(arm.reference):
            continue
        others = [name for name in by_name if name != arm.name]
        base = by_name.get(arm.reference)
        if base is None or base is arm:
            near = suggestion(arm.reference, others)
            text = f"no file and no other arm {arm.reference!r}{near} known: {', '.join(others) or 'none'}"
            findings.add((*path, "reference"), text)
        elif base.reference:
            findings.add((*path, "reference"), f"{base.name!r} has a reference itself; name {base.reference!r}")
