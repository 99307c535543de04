"""What ``decode=`` may be, and the callable that each kind becomes.

pydantic is not imported: its models and adapters are known by their methods.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Callable
from datetime import datetime
from typing import Any, ClassVar, Protocol, TypeAlias, TypeVar

V = TypeVar("V")
V_co = TypeVar("V_co", covariant=True)

#: Turns part of what JSON holds into a value; the text names the part, for an error.
Convert: TypeAlias = Callable[[Any, str], Any]

#: What JSON holds, in words.
KINDS: dict[type, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    types.NoneType: "null",
    list: "a list",
    dict: "an object",
}


class Model(Protocol[V_co]):
    """A pydantic model, the class."""

    def model_validate_json(self, json_data: str, /) -> V_co: ...


class Adapter(Protocol[V_co]):
    """A pydantic ``TypeAdapter``."""

    def validate_json(self, data: str, /) -> V_co: ...


class Dataclass(Protocol):
    """An instance of a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


Decode: TypeAlias = Callable[[str], V] | Model[V] | Adapter[V]


def decoder(decode: Any) -> Callable[[str], Any]:
    """The callable of the payload that *decode* stands for.

    A pydantic model or ``TypeAdapter`` stands for its validation of JSON, a dataclass for
    :class:`FromJSON`, and any other callable for itself.

    :raises TypeError: not a callable, an alias such as ``list[int]``, or a dataclass with fields
        that only pydantic can check.
    """
    if isinstance(decode, type):
        if hasattr(decode, "model_validate_json"):
            return typing.cast(Model[Any], decode).model_validate_json
        if hasattr(decode, "__pydantic_validator__"):  # a dataclass of pydantic's
            return typing.cast(Callable[[str], Any], decode.__pydantic_validator__.validate_json)
        if dataclasses.is_dataclass(decode):
            return FromJSON(decode)
    elif hasattr(decode, "validate_json"):
        return typing.cast(Adapter[Any], decode).validate_json
    elif typing.get_origin(decode) is not None:
        raise TypeError(f"decode={decode!r} checks nothing: use pydantic.TypeAdapter({decode!r})")
    elif not callable(decode):
        raise TypeError(
            "decode must be a callable of the payload, a dataclass, or a pydantic model or "
            f"TypeAdapter, not {type(decode).__name__}"
        )
    return typing.cast(Callable[[str], Any], decode)


class FromJSON:
    """Makes instances of a dataclass from JSON objects, and refuses what does not fit.

    Its errors name fields and types, never the contents of the payload.

    :raises TypeError: the type of a field is more than it can check.
    """

    def __init__(self, cls: type[Any]) -> None:
        self._name = cls.__qualname__
        self._convert = _dataclass(cls, {})

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name}>"

    def __call__(self, payload: str) -> Any:
        """The instance.

        :raises ValueError: the payload does not fit.
        """
        try:
            parsed = json.loads(payload)
        except ValueError:
            raise ValueError(f"{self._name}: the payload is not JSON") from None
        return self._convert(parsed, self._name)


def _dataclass(cls: type[Any], known: dict[type[Any], Convert]) -> Convert:
    """:param known: the enclosing dataclasses, as one may contain itself."""
    if cls in known:
        return known[cls]
    fields: dict[str, Convert] = {}

    def convert(value: Any, at: str) -> Any:
        _check(dict, value, at)
        if missing := required - value.keys():
            raise ValueError(f"{at} lacks {', '.join(sorted(missing))}")
        if unknown := len(value.keys() - fields.keys()):
            raise ValueError(f"{at} has {unknown} more than {', '.join(fields)}")
        return cls(**{name: fields[name](value[name], f"{at}.{name}") for name in value})

    known[cls] = convert
    try:
        hints = typing.get_type_hints(cls)
    except NameError as error:
        raise TypeError(f"{cls.__qualname__}: {error} in its module; name it there") from None
    made = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for name, hint in hints.items():
        if name in made or isinstance(hint, dataclasses.InitVar):
            fields[name] = _converter(hint, f"{cls.__qualname__}.{name}", known)
    no_default = dataclasses.MISSING
    required = {
        name
        for name, field in made.items()
        if field.default is no_default and field.default_factory is no_default
    }
    return convert


def _converter(hint: Any, at: str, known: dict[type[Any], Convert]) -> Convert:
    if hint in (Any, object):
        return lambda value, _: value
    if hint is float:
        return _float
    if hint is datetime:
        return _datetime
    if hint in (str, int, bool, types.NoneType):
        return functools.partial(_check, hint)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _dataclass(hint, known)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is list:
        return _list(_converter(arguments[0], at, known))
    if origin is dict and arguments[0] is str:
        return _dict(_converter(arguments[1], at, known))
    if origin in (typing.Union, types.UnionType) and len(arguments) == 2:
        others = [argument for argument in arguments if argument is not types.NoneType]
        if len(others) == 1:
            return _optional(_converter(others[0], at, known))
    raise TypeError(f"{at}: a dataclass cannot check {hint!r}; use a pydantic model")


def _check(kind: type, value: Any, at: str) -> Any:
    if type(value) is not kind:  # not isinstance: True is not a number
        raise ValueError(f"{at} must be {KINDS[kind]}, not {KINDS[type(value)]}")
    return value


def _float(value: Any, at: str) -> float:
    return float(value if type(value) is int else _check(float, value, at))


def _datetime(value: Any, at: str) -> datetime:
    try:
        return datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise ValueError(f"{at} must be an ISO 8601 time") from None


def _list(item: Convert) -> Convert:
    return lambda value, at: [
        item(part, f"{at}[{index}]") for index, part in enumerate(_check(list, value, at))
    ]


def _dict(item: Convert) -> Convert:
    return lambda value, at: {
        name: item(part, f"{at}[...]") for name, part in _check(dict, value, at).items()
    }


def _optional(other: Convert) -> Convert:
    return lambda value, at: None if value is None else other(value, at)
