"""Parquet, by pyarrow, which only this module needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from indexer.errors import InputError
from indexer.fields import INT64_MAX, INT64_MIN
from indexer.readers.documents import Record, check_columns
from indexer.readers.files import ByteMeter, SourceFile
from indexer.readers.options import ReadOptions

_BATCH_ROWS = 256
_PAGE_BUFFER_BYTES = 1 << 20
_EPOCH = datetime(1970, 1, 1)
_NANOSECONDS = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}


@dataclass(frozen=True, slots=True)
class _Refused:
    """Stands for a value that a document cannot have, and says why."""

    problem: str


def read_parquet(file: SourceFile, options: ReadOptions, meter: ByteMeter) -> Iterator[Record | InputError]:
    """Records, and an error in the place of each row that is none; a null is absent.

    Raises `InputError` where the file or its columns cannot be read, and where pyarrow is missing.
    """
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise InputError("Parquet files need pyarrow: pip install 'tagdex[parquet]'", source=file.path) from error

    row = 0
    try:
        with ParquetFile(
            file.path,
            pre_buffer=False,  # with the buffer below, keeps row groups from being held as a whole
            buffer_size=_PAGE_BUFFER_BYTES,
            page_checksum_verification=True,
            coerce_int96_timestamp_unit="us",  # as nanoseconds, years before 1678 and after 2261 wrap around
        ) as table:
            names: list[str] = table.schema_arrow.names
            for name in names:
                if names.count(name) > 1:
                    raise InputError(f"two columns are named '{name}': rename one", source=file.path)
            check_columns(names, options, source=file.path, line=None)
            for batch in table.iter_batches(batch_size=_BATCH_ROWS, use_threads=False):
                columns = [_python_values(column) for column in batch.columns]
                for values in zip(*columns, strict=True):
                    row += 1
                    meter.advance_to((file.size or 0) * row // max(table.metadata.num_rows, 1))
                    yield _record(names, values, file.path, row)
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"cannot be read as Parquet: {reason}", source=file.path, line=row or None) from error


def _record(names: list[str], values: tuple[Any, ...], source: str, row: int) -> Record | InputError:
    fields = {}
    for name, value in zip(names, values, strict=True):
        if isinstance(value, _Refused):
            return InputError(value.problem, source=source, line=row, field=name)
        if value is not None:
            fields[name] = value
    return Record(fields, row)


def _python_values(column: Any) -> list[Any]:
    """A column of a batch as JSON values, `_Refused` where a value has no JSON form."""
    from pyarrow import types

    kind = column.type
    as_they_are = (
        types.is_boolean,
        types.is_integer,
        types.is_float32,
        types.is_float64,
        types.is_string,
        types.is_large_string,
    )
    if any(holds(kind) for holds in as_they_are):
        try:
            values: list[Any] = column.to_pylist()
        except UnicodeDecodeError:
            pass  # one of the strings: found one by one below
        else:
            return values
    return [_or_refused(_json_value, scalar) for scalar in column]


def _or_refused(convert: Callable[[Any], Any], scalar: Any) -> Any:
    try:
        return convert(scalar)
    except UnicodeDecodeError as error:
        return _Refused(f"byte 0x{error.object[error.start]:02X} is not UTF-8")
    except (ValueError, OverflowError, KeyError) as error:
        return _Refused(str(error))


def _json_value(scalar: Any) -> Any:
    """An Arrow scalar as a JSON value; raises `ValueError` or `OverflowError` where it has none."""
    from pyarrow import BaseExtensionType, ListScalar, types

    kind = scalar.type
    if not scalar.is_valid:
        return None
    if types.is_timestamp(kind):
        return timestamp_text(scalar.value, kind.unit, utc=kind.tz is not None)
    if types.is_time(kind):
        return timestamp_text(scalar.value, kind.unit, utc=False).partition("T")[2]
    if types.is_date(kind):
        return scalar.as_py().isoformat()
    if types.is_decimal(kind):
        return decimal_value(scalar.as_py())
    if types.is_dictionary(kind):
        return _json_value(scalar.value)
    if types.is_map(kind):
        pairs = [(_json_value(entry[0]), _json_value(entry[1])) for entry in scalar.values]
        if not all(isinstance(key, str) for key, _ in pairs):
            raise ValueError("a map must have strings as keys")
        return {key: value for key, value in pairs if value is not None}
    if types.is_struct(kind):
        return {name: _json_value(inner) for name, inner in scalar.items() if inner.is_valid}
    if isinstance(scalar, ListScalar):
        return [_json_value(inner) for inner in scalar.values]
    if isinstance(kind, BaseExtensionType):
        value = scalar.as_py()
        return str(value) if isinstance(value, UUID) else _json_value(scalar.value)
    value = scalar.as_py()
    if isinstance(value, str | bool | int):
        return value
    if types.is_floating(kind):
        return float(value)  # half precision was a numpy scalar before pyarrow 21
    raise ValueError(f"a value of type {kind} has no place in JSON: convert or drop this column")


def timestamp_text(count: int, unit: str, *, utc: bool) -> str:
    """ISO 8601 of a time since 1970, `count` in s, ms, us or ns. One with a zone is given in UTC.

    The fraction has 0, 6 or 9 digits, as many as the value needs, so that texts sort as the times do. Raises
    `ValueError` for years beyond four digits.

    >>> timestamp_text(1_500, "ms", utc=False), timestamp_text(1, "ns", utc=True)
    ('1970-01-01T00:00:01.500000', '1970-01-01T00:00:00.000000001+00:00')
    """
    microseconds, nanoseconds = divmod(count * _NANOSECONDS[unit], 1_000)
    try:
        moment = _EPOCH + timedelta(microseconds=microseconds)
    except OverflowError as error:
        raise ValueError("the time is not within the years 1 to 9999") from error
    text = moment.isoformat(timespec="microseconds") if nanoseconds else moment.isoformat()
    return f"{text}{f'{nanoseconds:03}' if nanoseconds else ''}{'+00:00' if utc else ''}"


def decimal_value(value: Decimal) -> int | float | str:
    """The JSON number that writes exactly this decimal, or its text where no 64-bit number does.

    >>> decimal_value(Decimal("19.99")), decimal_value(Decimal("7")), decimal_value(Decimal("0." + "3" * 20))
    (19.99, 7, '0.33333333333333333333')
    """
    if value.as_tuple().exponent == 0:
        return int(value) if INT64_MIN <= value <= INT64_MAX else str(value)
    number = float(value)
    return number if Decimal(repr(number)) == value else str(value)
