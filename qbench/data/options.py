"""Settings inside a data name, such as `dyck:k=8,length=128`: every mistake is one line that names it."""

from collections.abc import Iterable, Mapping

from qbench.data.text import BadData
from qbench.names import suggestion


def settings(name: str, text: str, known: Iterable[str], comma: str = ",") -> dict[str, str]:
    """`text`, parts such as `key=value` with `comma` between them, by key; `name` is what mistakes are about.

    Raises:
        BadData: a part is no setting, its key is not `known`, or stands twice.

    >>> settings("dyck", "k=8,length=128", ["k", "length"])
    {'k': '8', 'length': '128'}
    >>> settings("dyck", "k=8,lenght=128", ["k", "length"])
    Traceback (most recent call last):
    qbench.data.text.BadData: dyck: no setting 'lenght'; did you mean 'length'? known: k, length
    """
    known, found = list(known), dict[str, str]()
    for part in text.split(comma) if text else ():
        key, equals, value = part.partition("=")
        if not equals or not value:
            raise BadData(f"{name}: expected settings such as {known[0]}=VALUE with {comma!r} between, found {part!r}")
        if key not in known:
            raise BadData(f"{name}: no setting {key!r}{suggestion(key, known)} known: {', '.join(known)}")
        if key in found:
            raise BadData(f"{name}: {key} is set twice")
        found[key] = value
    return found


def whole(name: str, given: Mapping[str, str], bounds: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    """The `given` settings as whole numbers within their `bounds`, both ends included.

    Raises:
        BadData: one is no whole number, or out of bounds.
    """
    numbers: dict[str, int] = {}
    for key, value in given.items():
        least, most = bounds[key]
        if not (value.isascii() and value.isdigit() and least <= int(value[:20]) <= most):
            raise BadData(f"{name}: {key} is a whole number from {least} to {most}, found {value!r}")
        numbers[key] = int(value)
    return numbers
