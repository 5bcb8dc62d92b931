"""Arrow types of input columns: which can be text, an id or messages, and which can be kept."""

import base64
from typing import Any

import pyarrow as pa
from pyarrow import types

from synthia_batch.core.types import KeptColumn

_PLAIN = {pa.string(): "string", pa.int64(): "int64", pa.float64(): "double", pa.bool_(): "bool"}


def is_text(type_: pa.DataType) -> bool:
    """Return whether values of this type are strings."""
    if types.is_dictionary(type_):
        return is_text(type_.value_type)
    return bool(types.is_string(type_) or types.is_large_string(type_) or types.is_string_view(type_))


def is_id(type_: pa.DataType) -> bool:
    """Return whether values of this type can be ids: strings and integers."""
    if types.is_dictionary(type_):
        return is_id(type_.value_type)
    return bool(is_text(type_) or types.is_integer(type_))


def is_messages(type_: pa.DataType) -> bool:
    """Return whether values of this type can be conversations: lists of structs, or JSON text."""
    is_list = _is_list_of(type_, "role", "content") or _is_list_of(type_, "from", "value")
    return is_list or is_text(type_)


def is_turns(type_: pa.DataType) -> bool:
    """Return whether values of this type can be the user's messages of a conversation: lists of strings."""
    return _is_list(type_) and is_text(type_.value_type)


def is_object(type_: pa.DataType) -> bool:
    """Return whether values of this type can be objects of names and values: structs, maps, or JSON text."""
    if types.is_struct(type_):
        names = [type_.field(number).name for number in range(type_.num_fields)]
        return len(set(names)) == len(names)
    return is_text(type_) or bool(types.is_map(type_) and is_text(type_.key_type))


def is_objects(type_: pa.DataType) -> bool:
    """Return whether values of this type can be lists of objects: lists of structs, or JSON text."""
    return is_text(type_) or (_is_list(type_) and types.is_struct(type_.value_type))


def has_nested_fields(type_: pa.DataType) -> bool:
    """Return whether values of this type are lists of structs that have lists or structs themselves."""
    if not _is_list(type_) or not types.is_struct(type_.value_type):
        return False
    fields = (type_.value_type.field(number).type for number in range(type_.value_type.num_fields))
    return any(_is_list(inner) or types.is_struct(inner) for inner in fields)


def leave_out_nulls(value: Any) -> Any:
    """Return `value` without nulls in objects: all structs of a column have the names of any of them."""
    if isinstance(value, dict):
        return {name: leave_out_nulls(inner) for name, inner in value.items() if inner is not None}
    return [leave_out_nulls(inner) for inner in value] if isinstance(value, list) else value


def make_kept_column(field: pa.Field) -> KeptColumn | None:
    """Return the kept column for `field`, or None if its type cannot be kept.

    Kept are the types whose Python values convert back to the same Arrow values: null, booleans,
    integers, float32 and float64, decimals, text, binary, date32, time32, time64[us], timestamps
    and durations to the microsecond, and lists, structs and maps of them. Dictionaries are kept
    as their values, views as plain text and binary. Not kept: anything in nanoseconds (Python's
    datetime has none), float16, date64, intervals, unions, run-end encodings, extension types.
    """
    type_ = _normalize(field.type)
    if type_ is None:
        return None
    if type_ in _PLAIN:
        return KeptColumn(name=field.name, type=_PLAIN[type_])
    schema = pa.schema([pa.field(field.name, type_)])
    text = base64.b64encode(schema.serialize().to_pybytes()).decode()
    return KeptColumn(name=field.name, type=f"arrow:{text}")


def list_values(array: pa.Array) -> list[Any]:
    """Return the Python values of `array`.

    Raises ValueError or OverflowError if a value has none: text that is not UTF-8, a date
    after the year 9999.
    """
    # Otherwise an index beyond the dictionary, in a damaged file, causes a segmentation fault.
    array.validate(full=True)
    if types.is_dictionary(array.type):
        array = array.dictionary_decode()
    values: list[Any] = array.to_pylist()
    return values


def _normalize(type_: pa.DataType) -> pa.DataType | None:
    """Return the type with which values of `type_` are kept, or None."""
    if types.is_dictionary(type_):
        return _normalize(type_.value_type)
    if types.is_string_view(type_):
        return pa.string()
    if types.is_binary_view(type_):
        return pa.binary()
    if _is_list(type_) or types.is_struct(type_) or types.is_map(type_):
        return _normalize_nested(type_)
    return type_ if _is_kept_as_it_is(type_) else None


def _normalize_nested(type_: pa.DataType) -> pa.DataType | None:
    if types.is_map(type_):
        key, item = _normalize(type_.key_type), _normalize(type_.item_type)
        return pa.map_(key, item) if key is not None and item is not None else None
    if types.is_struct(type_):
        fields = [type_.field(number) for number in range(type_.num_fields)]
        inner = [_normalize(field.type) for field in fields]
        names = [field.name for field in fields]
        if not names or None in inner or len(set(names)) < len(names):
            return None
        return pa.struct([pa.field(name, kind) for name, kind in zip(names, inner, strict=True)])
    value = _normalize(type_.value_type)
    if value is None:
        return None
    return pa.large_list(value) if types.is_large_list(type_) else pa.list_(value)


def _is_kept_as_it_is(type_: pa.DataType) -> bool:
    if types.is_timestamp(type_):
        return type_.unit != "ns" and _has_known_zone(type_)
    if types.is_duration(type_) or types.is_time(type_):
        return bool(type_.unit != "ns")
    return bool(
        types.is_null(type_)
        or types.is_boolean(type_)
        or types.is_integer(type_)
        or types.is_float32(type_)
        or types.is_float64(type_)
        or types.is_decimal(type_)
        or types.is_string(type_)
        or types.is_large_string(type_)
        or types.is_binary(type_)
        or types.is_large_binary(type_)
        or types.is_fixed_size_binary(type_)
        or types.is_date32(type_)
    )


def _has_known_zone(type_: pa.DataType) -> bool:
    try:
        pa.scalar(0, pa.int64()).cast(type_).as_py()
    except (pa.ArrowException, LookupError, ValueError):
        return False
    return True


def _is_list_of(type_: pa.DataType, *wanted: str) -> bool:
    """Return whether values are lists of structs with the `wanted` fields and no duplicate names."""
    if not _is_list(type_) or not types.is_struct(type_.value_type):
        return False
    names = [type_.value_type.field(number).name for number in range(type_.value_type.num_fields)]
    return set(wanted) <= set(names) and len(set(names)) == len(names)


def _is_list(type_: pa.DataType) -> bool:
    return bool(types.is_list(type_) or types.is_large_list(type_) or types.is_fixed_size_list(type_))
