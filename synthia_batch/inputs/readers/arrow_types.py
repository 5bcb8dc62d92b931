"""Arrow types of input columns: which can be text, an id or messages, and the Python values of an array."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa
from pyarrow import types

from synthia_batch.inputs.records.conversation_forms import PAIRS
from synthia_batch.inputs.records.faults import RowFault
from synthia_batch.inputs.records.strict_json import parse_json


def is_text(type_: pa.DataType) -> bool:
    """Return whether values of this type are strings. Those of arrow.json can be: they are decoded."""
    if isinstance(type_, pa.JsonType):
        return True
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
    forms = (("role", "content"), ("from", "value"), *PAIRS)
    if is_list(type_) and is_list(type_.value_type):  # Of turns that are lists of messages.
        type_ = type_.value_type
    return is_text(type_) or any(_is_list_of(type_, *form) for form in forms)


def is_turns(type_: pa.DataType) -> bool:
    """Return whether values of this type can be the user's messages of a conversation: lists of strings."""
    return is_list(type_) and is_text(type_.value_type)


def is_object(type_: pa.DataType) -> bool:
    """Return whether values of this type can be objects of names and values: structs, maps, or JSON text."""
    if types.is_struct(type_):
        names = [type_.field(number).name for number in range(type_.num_fields)]
        return len(set(names)) == len(names)
    return is_text(type_) or bool(types.is_map(type_) and is_text(type_.key_type))


def is_objects(type_: pa.DataType) -> bool:
    """Return whether values of this type can be lists of objects: lists of structs, or JSON text."""
    return is_text(type_) or (is_list(type_) and types.is_struct(type_.value_type))


def has_nested_fields(type_: pa.DataType) -> bool:
    """Return whether values of this type are lists of structs that have lists or structs themselves."""
    if not is_list(type_) or not types.is_struct(type_.value_type):
        return False
    fields = (type_.value_type.field(number).type for number in range(type_.value_type.num_fields))
    return any(is_list(inner) or types.is_struct(inner) for inner in fields)


def leave_out_nulls(value: Any) -> Any:
    """Return `value` without nulls in objects: all structs of a column have the names of any of them."""
    if isinstance(value, dict):
        return {name: leave_out_nulls(inner) for name, inner in value.items() if inner is not None}
    return [leave_out_nulls(inner) for inner in value] if isinstance(value, list) else value


def is_list(type_: pa.DataType) -> bool:
    return bool(
        types.is_list(type_)
        or types.is_large_list(type_)
        or types.is_fixed_size_list(type_)
        or types.is_list_view(type_)
        or types.is_large_list_view(type_)
    )


def map_leaves(type_: pa.DataType, change: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """Return the type with `change` applied to all types within lists, structs and maps."""
    if types.is_map(type_):
        inner = [type_.key_type, type_.item_type]
        changed = [map_leaves(kind, change) for kind in inner]
        return type_ if changed == inner else pa.map_(*changed)
    if types.is_struct(type_):
        names = [type_.field(number).name for number in range(type_.num_fields)]
        inner = [type_.field(number).type for number in range(type_.num_fields)]
        changed = [map_leaves(kind, change) for kind in inner]
        return type_ if changed == inner else pa.struct(list(zip(names, changed, strict=True)))
    if not is_list(type_):
        return change(type_)
    value = map_leaves(type_.value_type, change)
    if value == type_.value_type:
        return type_
    if types.is_fixed_size_list(type_):
        return pa.list_(value, type_.list_size)
    is_large = types.is_large_list(type_) or types.is_large_list_view(type_)
    return pa.large_list(value) if is_large else pa.list_(value)


def list_values(array: pa.Array) -> list[Any]:
    """Return Python values of `array` that convert back to the same Arrow values.

    Extension types give the values of their storage. What has nanoseconds, which Python's datetime has not,
    or a time zone that Python does not know, gives the integers that Arrow stores.

    Raises ValueError or OverflowError if a value has no counterpart: text that is not UTF-8, a date
    after the year 9999.
    """
    # Otherwise an index beyond the dictionary, in a damaged file, causes a segmentation fault.
    array.validate(full=True)
    if types.is_dictionary(array.type):
        array = array.dictionary_decode()
    exact = map_leaves(array.type, _find_exact)
    values: list[Any] = (array if exact == array.type else array.cast(exact)).to_pylist()
    return values


def list_decoded(array: pa.Array) -> list[Any]:
    """Return the Python values of `array`, with those of arrow.json decoded. Raises as `list_values`."""
    values = list_values(array)
    if not has_leaf(array.type, lambda leaf: isinstance(leaf, pa.JsonType)):
        return values
    return [_decode(value, array.type) for value in values]


def has_leaf(type_: pa.DataType, is_wanted: Callable[[pa.DataType], bool]) -> bool:
    """Return whether the type is, or holds within lists, structs and maps, one that `is_wanted`."""
    found: list[bool] = []

    def look(leaf: pa.DataType) -> pa.DataType:
        found.append(is_wanted(leaf))
        return leaf

    map_leaves(type_, look)
    return any(found)


def _find_exact(type_: pa.DataType) -> pa.DataType:
    if isinstance(type_, pa.BaseExtensionType):
        return map_leaves(type_.storage_type, _find_exact)
    is_time = types.is_timestamp(type_) or types.is_duration(type_) or types.is_time64(type_)
    if is_time and (type_.unit == "ns" or (types.is_timestamp(type_) and not _has_known_zone(type_))):
        return pa.int64()
    return type_


def _decode(value: Any, type_: pa.DataType) -> Any:
    if value is None:
        return None
    if isinstance(type_, pa.JsonType):
        try:
            return parse_json(value)
        except RowFault as exc:
            raise ValueError(str(exc)) from exc
    if types.is_struct(type_):
        return {name: _decode(inner, type_.field(name).type) for name, inner in value.items()}
    if types.is_map(type_):
        return [(_decode(key, type_.key_type), _decode(item, type_.item_type)) for key, item in value]
    return [_decode(inner, type_.value_type) for inner in value] if is_list(type_) else value


def _has_known_zone(type_: pa.DataType) -> bool:
    try:
        pa.scalar(0, pa.int64()).cast(type_).as_py()
    except (pa.ArrowException, LookupError, ValueError):
        return False
    return True


def _is_list_of(type_: pa.DataType, *wanted: str) -> bool:
    """Return whether values are lists of structs with the `wanted` fields and no duplicate names."""
    if not is_list(type_) or not types.is_struct(type_.value_type):
        return is_list(type_) and isinstance(type_.value_type, pa.JsonType)
    names = [type_.value_type.field(number).name for number in range(type_.value_type.num_fields)]
    return set(wanted) <= set(names) and len(set(names)) == len(names)
