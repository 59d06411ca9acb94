"""What may stand under one key of a suite file: counts, words, seeds, lists of them. The forms are made of these."""

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

LARGEST = 2**31 - 1  # any count; a seed too, because random number generators want no more
MOST_LOOKS = 5


def as_many(value: Any) -> Any:
    return value if isinstance(value, tuple) else (value,)


def distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    seen = set[Any]()
    for value in values:
        if value in seen:
            raise ValueError(f"{value} is given twice")
        seen.add(value)
    return values


def _ascending(values: tuple[int, ...]) -> tuple[int, ...]:
    if list(values) != sorted(set(values)):
        raise ValueError("looks at growing data: each number of windows is larger than the one before")
    return values


def scalar(value: object) -> object:
    if isinstance(value, tuple | dict):
        raise ValueError("a parameter is text, a number, true, false or null")
    return value


def _tidy(text: str) -> str:
    if text != " ".join(text.split()):
        raise ValueError("no line breaks and no needless spaces here; it stands in tables")
    return text


Name = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_tidy)]
Text = Annotated[str, Field(min_length=1, max_length=1000)]
Word = Annotated[str, Field(min_length=1, max_length=200)]
Count = Annotated[int, Field(ge=1, le=LARGEST)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Looks = Annotated[
    tuple[Count, ...], Field(min_length=1, max_length=MOST_LOOKS), BeforeValidator(as_many), AfterValidator(_ascending)
]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0, le=LARGEST)], ...], Field(min_length=1), AfterValidator(distinct)]
Words = Annotated[tuple[Word, ...], Field(min_length=1), BeforeValidator(as_many), AfterValidator(distinct)]
Names = Annotated[tuple[Word, ...], BeforeValidator(as_many), AfterValidator(distinct)]  # a profile may empty it
Axis = Annotated[tuple[Any, ...], Field(min_length=1)]
SEVERAL = (BeforeValidator(as_many), Field(min_length=1), AfterValidator(distinct))
Decibels = Annotated[tuple[Annotated[float, Field(ge=-100, le=200)], ...], *SEVERAL]
