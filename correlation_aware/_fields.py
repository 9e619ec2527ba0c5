"""Checks values against the annotations of a dataclass's fields."""

import math
import numbers
import types
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

__all__ = ["check_values"]

WORDS = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}


def check_values(kind: type, values: Mapping[str, Any]) -> None:
    """Checks the types of values for fields of a dataclass.

    Numbers of NumPy are numbers, and whole numbers are numbers; True and False are not, nor is NaN. Of
    annotations bool, int, float, str, Literal, tuple and unions of them are checked, others take anything.

    Args:
        kind: Dataclass.
        values: Values by the names of its fields; other names are left out.

    Raises:
        ValueError: A value of another type; the message has its name, the value and what is expected.
    """
    for name, hint in _hints(kind).items():
        if name in values and not _fits(hint, values[name]):
            text = repr(values[name])
            text = text if len(text) <= 200 else f"{text[:200]}..."
            verb = "is not" if get_origin(hint) is Literal else "must be"
            raise ValueError(f"{name}={text} {verb} {_words(hint)}.")


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _fits(hint: Any, value: Any) -> bool:
    origin, options = get_origin(hint), get_args(hint)
    if hint is bool or hint is str or hint is type(None):
        return isinstance(value, hint)
    if hint is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool) and _is_float(value)
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in options)
    if origin in (Union, types.UnionType):
        return any(_fits(option, value) for option in options)
    if origin is tuple:
        if not isinstance(value, (tuple, list)):
            return False
        if options[-1] is Ellipsis:
            return all(_fits(options[0], item) for item in value)
        return len(value) == len(options) and all(map(_fits, options, value))
    return True


def _is_float(value: numbers.Real) -> bool:
    try:
        return not math.isnan(value)
    except OverflowError:  # a whole number of more than 308 digits
        return False


def _words(hint: Any) -> str:
    """What an annotation means, for a message."""
    origin, options = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, options))}"
    if origin in (Union, types.UnionType):
        return " or ".join(_words(option) for option in options)
    if origin is tuple:
        items = f"{_words(options[0])}, ..." if options[-1] is Ellipsis else ", ".join(map(_words, options))
        return f"({items})"
    return WORDS.get(hint, "None" if hint is type(None) else str(hint))
