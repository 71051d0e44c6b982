"""Parsers of the form's text fields: what each accepts, and what its refusal says.

Each function gives metadata for an `Annotated` type: a strict parser, or the schema that shows it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from enum import StrEnum
from typing import Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ValidationError, WithJsonSchema
from pydantic_core import PydanticCustomError

from server.errors import shown

E = TypeVar("E", bound=StrEnum)
M = TypeVar("M", bound=BaseModel)

_DECIMAL = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,4})?", re.ASCII)
_MAX_LENGTH = 400
"""Characters of a number: a float written out to its last digit has fewer, whatever the zeros."""


def refuse(value: object, rule: str) -> PydanticCustomError:
    """Return the refusal of a value, of which the start is shown."""
    return PydanticCustomError("rule", "{shown} {rule}", {"shown": shown(value), "rule": rule})


def decimal_number(value: object) -> Decimal | None:
    """Return a plain decimal, or None: no NaN, infinity, underscore or digit beyond ASCII."""
    text = str(value).strip()
    if len(text) > _MAX_LENGTH or not _DECIMAL.fullmatch(text):
        return None
    return Decimal(text)


def whole_number(low: int, high: int, *, multiple_of: int = 1) -> BeforeValidator:
    """Reads a whole number in `low..high`; `20.0` is one too."""
    kind = "a whole number" if multiple_of == 1 else f"a multiple of {multiple_of}"

    def parse(value: object) -> int:
        number = decimal_number(value)
        if number is None or number != number.to_integral_value():
            raise refuse(value, f"is not {kind} in {low}..{high}")
        if not low <= number <= high:
            raise refuse(value, f"is not in {low}..{high}")
        if int(number) % multiple_of:
            raise refuse(value, f"is not {kind} in {low}..{high}")
        return int(number)

    return BeforeValidator(parse)


def real_number(low: float, high: float) -> BeforeValidator:
    """Reads a decimal number in `low..high`."""

    def parse(value: object) -> float:
        number = decimal_number(value)
        if number is None:
            raise refuse(value, f"is not a number in {low:g}..{high:g}")
        if not Decimal(low) <= number <= Decimal(high):
            raise refuse(value, f"is not in {low:g}..{high:g}")
        nearest = float(number) + 0.0  # -0 is 0
        # What is below the upper end stays below it: image_strength has a rule for 1 alone.
        return math.nextafter(high, low) if number < nearest == high else nearest

    return BeforeValidator(parse)


def choice(values: type[E] | tuple[str, ...]) -> BeforeValidator:
    """Reads one of the names, as they are written."""
    names = tuple(values) if isinstance(values, tuple) else tuple(item.value for item in values)

    def parse(value: object) -> object:
        text = str(value).strip()
        if text not in names:
            raise refuse(value, f"is not one of {', '.join(names)}")
        return text if isinstance(values, tuple) else values(text)

    return BeforeValidator(parse)


def truth() -> BeforeValidator:
    """Reads `true` or `false`, in any case; `1` and `0` too."""

    def parse(value: object) -> bool:
        text = str(value).strip().lower()
        if text not in ("true", "false", "1", "0"):
            raise refuse(value, "is not true or false")
        return text in ("true", "1")

    return BeforeValidator(parse)


def trimmed_text(max_length: int) -> BeforeValidator:
    """Reads text of at most `max_length` characters after trimming."""

    def parse(value: object) -> str:
        text = str(value).strip()
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise PydanticCustomError(
                "rule", "holds half of a surrogate pair, which is no character"
            )
        if len(text) > max_length:
            raise PydanticCustomError(
                "rule",
                "{length} characters is over {limit}",
                {"length": len(text), "limit": max_length},
            )
        return text

    return BeforeValidator(parse)


def documented(**schema: Any) -> WithJsonSchema:
    """A field's JSON schema, as OpenAPI shows it."""
    return WithJsonSchema(schema)


def validated(model: type[M], texts: Mapping[str, str]) -> tuple[M | None, list[str]]:
    """Return the model of texts, or None and a line for each bad field: `n: 5 is not in 1..4`.

    Blank texts count as left out.
    """
    given = {name: text for name, text in texts.items() if text.strip()}
    try:
        return model.model_validate(given), []
    except ValidationError as error:
        return None, [
            f"{item['loc'][0]}: {'is required' if item['type'] == 'missing' else item['msg']}"
            for item in error.errors()
        ]
