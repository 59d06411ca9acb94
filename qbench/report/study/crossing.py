"""Arms in their places: architecture by optimizer, shorter schedules beside them, quantizers inside apart."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from qbench.models.catalog import MODELS
from qbench.report.factors import Factors, crossed, factors, style
from qbench.report.twins import twin, without
from qbench.report.view import Arm, View

Pair = tuple[str, str]  # architecture, optimizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """Where each arm of a study stands.

    `main` has the longest schedule of each pair, `schedules` all of a pair that differ in their steps alone, the
    longest first; `inside` pairs arms that had quantizers inside their training with the arm that had none.
    """

    known: Mapping[str, Factors]
    architectures: tuple[str, ...]
    optimizers: tuple[str, ...]
    main: Mapping[Pair, Arm]
    schedules: Mapping[Pair, tuple[Arm, ...]]
    inside: tuple[tuple[Arm, Arm | None], ...]

    @property
    def crossed(self) -> bool:
        return crossed([*self.known.values()])

    def with_optimizer(self, optimizer: str) -> list[Arm]:
        """The main arms of one optimizer, in the order of the architectures."""
        return [arm for (_, name), arm in self.main.items() if name == optimizer]

    def pair(self, arm: Arm) -> Pair:
        return self.known[arm.name].architecture, self.known[arm.name].optimizer

    def title(self, arm: Arm) -> str:
        """
        The arm's architecture with its optimizer, or alone where all arms have the same.
        """
        architecture, optimizer = self.pair(arm)
        return f"{architecture} + {optimizer}" if len(self.optimizers) > 1 else architecture

    def colour(self, architecture: str) -> int:
        """A style with the colour of an architecture."""
        return style(self.architectures.index(architecture), 0)

    def mark(self, optimizer: str) -> int:
        """A style with the mark of an optimizer."""
        return style(0, self.optimizers.index(optimizer))

    def described(self) -> list[tuple[str, str]]:
        """Each architecture and what it is, in the words of the catalog."""
        rows = {self.known[arm.name].architecture: MODELS.get(str(arm.model.get("arch"))) for arm in self.main.values()}
        return [(name, row.description) for name, row in rows.items() if row is not None]


def crossing(seen: View) -> Crossing:
    """Of every arm that was trained; models from elsewhere have no place here."""
    trained = [arm for arm in seen.arms if arm.training is not None]
    known = factors({arm.name: (arm.model, arm.training or {}) for arm in seen.arms})
    known = {arm.name: known[arm.name] for arm in trained}
    plain = [arm for arm in trained if not known[arm.name].quantized]
    pairs = [(known[arm.name].architecture, known[arm.name].optimizer) for arm in plain]
    architectures = tuple(dict.fromkeys(known[arm.name].architecture for arm in trained))
    order = sorted(dict.fromkeys(pairs), key=lambda pair: architectures.index(pair[0]))
    schedules = {
        pair: _schedules([arm for arm, at in zip(plain, pairs, strict=True) if at == pair], known) for pair in order
    }
    return Crossing(
        known=known,
        architectures=architectures,
        optimizers=tuple(dict.fromkeys(known[arm.name].optimizer for arm in trained)),
        main={pair: arms[0] for pair, arms in schedules.items()},
        schedules=schedules,
        inside=tuple((arm, twin(arm, plain)) for arm in trained if known[arm.name].quantized),
    )


def _schedules(arms: Iterable[Arm], known: Mapping[str, Factors]) -> tuple[Arm, ...]:
    """The first of each length, longest first, of those that are trained as the longest is but for their steps."""
    longest, *others = sorted(arms, key=lambda arm: -known[arm.name].steps)
    kept = {known[longest.name].steps: longest}
    for arm in others:
        if without(arm, "steps") == without(longest, "steps"):
            kept.setdefault(known[arm.name].steps, arm)
    return tuple(kept.values())
