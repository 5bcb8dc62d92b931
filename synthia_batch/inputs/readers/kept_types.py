"""The types of kept columns: from Arrow's to the plan's and back, and one type for the files of an input."""

import base64
import json
from collections.abc import Mapping
from dataclasses import replace

import pyarrow as pa
from pyarrow import types

from synthia_batch.core.types import KeptColumn
from synthia_batch.inputs.readers.arrow_types import is_list, map_leaves
from synthia_batch.inputs.readers.json_shape import Node

_PLAIN = {pa.string(): "string", pa.int64(): "int64", pa.float64(): "double", pa.bool_(): "bool"}
_FEATURES = b"huggingface"
_LOSSLESS = {("int", "float"), ("int", "decimal")}
"""Families of types whose values may become those of another, if each stays the same."""


def make_kept_column(field: pa.Field, feature: str | None = None) -> KeptColumn | None:
    """Return the kept column for `field`, or None if its type cannot be kept.

    Dictionaries are kept as their values, views as plain text, binary and lists, extension types other than
    arrow.json and arrow.uuid as their storage. Not kept: intervals, unions, run-end encodings, structs
    without fields or with a name twice.
    """
    type_ = _normalize(field.type)
    if type_ is None:
        return None
    return KeptColumn(
        name=field.name, type=_PLAIN.get(type_) or _serialize(field.name, type_), feature=feature
    )


def make_nested_column(name: str, shape: Node, unknown: str) -> KeptColumn:
    """Return the kept column for the lists or objects of a `shape` in JSON, nulls being of type `unknown`."""
    return KeptColumn(name=name, type=_serialize(name, _convert(shape, unknown)))


def _convert(node: Node, unknown: str) -> pa.DataType:
    if node.kind == "list" and node.item is not None:
        return pa.list_(_convert(node.item, unknown))
    if node.kind == "struct":
        return pa.struct([(name, _convert(inner, unknown)) for name, inner in node.fields.items()])
    return pa.type_for_alias(node.kind or unknown) if node.kind != "number" else pa.float64()


def parse_kept_type(column: KeptColumn) -> pa.DataType:
    kind, _, serialized = column.type.partition(":")
    if kind == "arrow":
        return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(serialized))).field(0).type
    return next((type_ for type_, name in _PLAIN.items() if name == kind), pa.string())


def describe_kept_type(column: KeptColumn) -> str:
    """Return the name of the column's type, for messages."""
    return str(parse_kept_type(column)) if column.type.startswith("arrow:") else column.type


def unify_kept(before: KeptColumn, now: KeptColumn) -> KeptColumn | None:
    """Return the column with a type for the values of both, None if there is none without loss.

    Integers become floating-point numbers, and times of a finer unit, only if each value stays exact:
    `can_cast` decides about the values.
    """
    features = [json.loads(each.feature) for each in (before, now) if each.feature is not None]
    if any(each != features[0] for each in features):
        return None
    feature = before.feature or now.feature
    if before.type == now.type:
        return replace(before, feature=feature)
    found = [parse_kept_type(before), parse_kept_type(now)]
    schemas = [pa.schema([("x", type_)]) for type_ in found]
    try:
        unified = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return None
    if not all(_is_lossless(type_, unified) for type_ in found):
        return None
    return make_kept_column(pa.field(before.name, unified), feature)


def can_cast(array: pa.Array, column: KeptColumn) -> bool:
    """Return whether each value of `array` has an exact counterpart in the column's type."""
    try:
        cast_kept(array, column)
    except (pa.ArrowException, ValueError):
        return False
    return True


def cast_kept(array: pa.Array, column: KeptColumn) -> pa.Array:
    """Return `array` in the type that all files of the input have in common. Raises pa.ArrowException."""
    if types.is_dictionary(array.type):
        array = array.dictionary_decode()
    own = make_kept_column(pa.field(column.name, array.type))
    return array if own is None or own.type == column.type else array.cast(parse_kept_type(column))


def list_features(schema: pa.Schema) -> Mapping[str, str]:
    """Return the features that the datasets library wrote into the schema, as JSON, by column."""
    try:
        features = json.loads((schema.metadata or {})[_FEATURES])["info"]["features"]
        encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
        return {name: encode(feature) for name, feature in features.items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _serialize(name: str, type_: pa.DataType) -> str:
    fields = [pa.field(name, type_)]
    extension = pa.BaseExtensionType
    storage = map_leaves(type_, lambda leaf: leaf.storage_type if isinstance(leaf, extension) else leaf)
    if storage != type_:
        fields.append(pa.field("storage", storage))
    return f"arrow:{base64.b64encode(pa.schema(fields).serialize().to_pybytes()).decode()}"


def _normalize(type_: pa.DataType) -> pa.DataType | None:
    """Return the type with which values of `type_` are kept, or None."""
    if types.is_dictionary(type_):
        return _normalize(type_.value_type)
    if types.is_string_view(type_):
        return pa.string()
    if types.is_binary_view(type_):
        return pa.binary()
    if isinstance(type_, pa.JsonType | pa.UuidType):
        return type_
    if isinstance(type_, pa.BaseExtensionType):
        return _normalize(type_.storage_type)
    if is_list(type_) or types.is_struct(type_) or types.is_map(type_):
        return _normalize_nested(type_)
    return type_ if _find_family(type_) != "other" else None


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
    is_large = types.is_large_list(type_) or types.is_large_list_view(type_)
    return pa.large_list(value) if is_large else pa.list_(value)


def _find_family(type_: pa.DataType) -> str:
    families = {
        "null": (types.is_null,),
        "bool": (types.is_boolean,),
        "int": (types.is_integer,),
        "float": (types.is_floating,),
        "decimal": (types.is_decimal,),
        "text": (types.is_string, types.is_large_string),
        "binary": (types.is_binary, types.is_large_binary, types.is_fixed_size_binary),
        "date": (types.is_date,),
        "time": (types.is_time,),
        "timestamp": (types.is_timestamp,),
        "duration": (types.is_duration,),
    }
    found = (name for name, checks in families.items() if any(check(type_) for check in checks))
    return type_.extension_name if isinstance(type_, pa.BaseExtensionType) else next(found, "other")


def _is_lossless(type_: pa.DataType, unified: pa.DataType) -> bool:
    """Return whether values of `type_` keep their meaning in `unified`, which Arrow found for it."""
    there = _list_families(unified)
    lost = _list_families(type_) - there
    return all(family == "null" or any((family, other) in _LOSSLESS for other in there) for family in lost)


def _list_families(type_: pa.DataType) -> set[str]:
    found: set[str] = set()

    def look(leaf: pa.DataType) -> pa.DataType:
        found.add(_find_family(leaf))
        return leaf

    map_leaves(type_, look)
    return found
