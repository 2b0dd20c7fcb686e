"""What an index is made of: its model and its heads, kept in the table `settings`."""

from __future__ import annotations

import hashlib
import json
import operator
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from indexer.errors import CorruptIndexError, FingerprintError, NotAnIndexError, ReplacedIndexError
from indexer.records import Analysis

DIGESTS = "digests"
"""Name of the row with the digest of each setting."""

INDEX_ID = "index_id"
"""Setting: a random text that tells this index from every other; indices of earlier versions have none."""


class Analyser(Protocol):
    """A model as the index sees it; `model.TextModel` is one."""

    name: str
    fingerprint: str
    heads_fingerprint: str | None

    @property
    def dimension(self) -> int: ...
    @property
    def class_labels(self) -> tuple[str, ...] | None: ...
    @property
    def entity_types(self) -> tuple[str, ...] | None: ...
    def analyse(self, texts: Sequence[str], *, tags: bool = True) -> list[Analysis]: ...


@dataclass(frozen=True, slots=True)
class IndexSettings:
    """Facts that hold for the whole index.

    `model` and `fingerprint` are `None` where the vectors were made elsewhere, by a model that is not known.
    `class_labels` and `entity_types` are `None` where the index was made without such tags.
    """

    model: str | None
    fingerprint: str | None
    heads_fingerprint: str | None
    dimension: int
    class_labels: tuple[str, ...] | None
    entity_types: tuple[str, ...] | None

    @property
    def tagged(self) -> bool:
        """True where documents have a class, entities or both."""
        return self.class_labels is not None or self.entity_types is not None

    def check_replaced(self, other: IndexSettings, *, place: str) -> None:
        """Raise `ReplacedIndexError` where the index that took the place of this one has other vectors."""
        if (other.fingerprint, other.dimension) != (self.fingerprint, self.dimension):
            raise ReplacedIndexError(
                f"{place} was replaced: it was built with model {self.model} ({self.dimension} dimensions), and is an "
                f"index of {other.model} ({other.dimension} dimensions) now; open it again"
            )


def settings_of(model: Analyser, *, tags: bool = True) -> IndexSettings:
    """The settings of a new index that this model fills."""
    return IndexSettings(
        model=model.name,
        fingerprint=model.fingerprint,
        heads_fingerprint=model.heads_fingerprint if tags else None,
        dimension=model.dimension,
        class_labels=model.class_labels if tags else None,
        entity_types=model.entity_types if tags else None,
    )


def settings_of_vectors(dimension: int) -> IndexSettings:
    """The settings of a new index for vectors that were made elsewhere."""
    return IndexSettings(None, None, None, dimension, None, None)


def check_model(settings: IndexSettings, model: Analyser, *, place: str, heads: bool) -> None:
    """Raise `FingerprintError` unless the model gives the same embeddings, and with `heads` the same tags.

    Of vectors that were made elsewhere only the dimension can be compared.
    """
    if settings.fingerprint is None:
        if model.dimension != settings.dimension:
            raise FingerprintError(
                f"{place} holds vectors of {settings.dimension} dimensions that were made elsewhere, {model.name} "
                f"makes {model.dimension}: pass the --model that made them"
            )
        return
    if model.fingerprint != settings.fingerprint:
        raise FingerprintError(
            f"{place} was built with model {settings.model} (fingerprint {settings.fingerprint[:12]}, "
            f"{settings.dimension} dimensions), got {model.name} (fingerprint {model.fingerprint[:12]}, "
            f"{model.dimension} dimensions): pass --model {settings.model}, or build a new index"
        )
    if heads and settings.tagged and model.heads_fingerprint != settings.heads_fingerprint:
        raise FingerprintError(
            f"{place} was tagged with the heads of {settings.model} (fingerprint "
            f"{(settings.heads_fingerprint or 'none')[:12]}), got those of {model.name} "
            f"({(model.heads_fingerprint or 'none')[:12]}): tag it again first with "
            f"'indexer retag {place} --model {model.name}'"
        )


def read_settings(connection: sqlite3.Connection) -> IndexSettings | None:
    """The settings of an index, `None` for one that has none yet. Raises `CorruptIndexError`."""
    stored = dict(connection.execute("SELECT name, value FROM settings").fetchall())
    if not stored:
        return None
    rows, wrong = sound_settings(stored)
    if wrong:
        raise CorruptIndexError(f"the setting '{min(wrong)}' does not match its digest; run 'indexer verify'")
    try:
        return settings_from(rows)
    except KeyError as error:
        raise NotAnIndexError(f"the index lacks its setting {error}") from error


def sound_settings(stored: Mapping[str, str]) -> tuple[dict[str, Any], set[str]]:
    """The values of the settings that match their digests, and the names of those that do not, or are gone."""
    try:
        digests = dict(json.loads(stored[DIGESTS]))
    except (KeyError, ValueError, TypeError):
        return {}, {DIGESTS}
    names = (stored.keys() | digests.keys()) - {DIGESTS}
    wrong = {name for name in names if name not in stored or digests.get(name) != _digest(name, stored[name])}
    return {name: json.loads(stored[name]) for name in names - wrong}, wrong


def restore_settings(stored: Mapping[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """The values of damaged settings that can be proven, and the names of those that cannot.

    A name or a value with a wrong bit is found by the digest; a digest with a wrong bit by all the others.
    """
    own = json.dumps({name: _digest(name, stored[name]) for name in sorted(stored.keys() - {DIGESTS})})
    text = stored.get(DIGESTS)
    if isinstance(text, str) and len(text) == len(own) and sum(map(operator.ne, text, own)) <= 1:
        return {name: json.loads(value) for name, value in stored.items() if name != DIGESTS}, set()
    try:
        digests = dict(json.loads(stored[DIGESTS]))
    except (KeyError, ValueError, TypeError):
        return {}, {DIGESTS}
    rows = {}
    for name, digest in digests.items():
        tried = [value for value in (stored.get(name), *stored.values()) if isinstance(value, str)]
        if isinstance(stored.get(name), str):
            tried += with_bits_turned(stored[name], most=1_000)
        found = next((value for value in tried if _digest(name, value) == digest), None)
        if found is not None:
            rows[name] = json.loads(found)
    return rows, digests.keys() - rows.keys()


def with_bits_turned(text: str, *, most: int) -> Iterator[str]:
    """A text with each of its bits turned, one at a time; nothing for one of more bytes than `most`."""
    data = bytearray(text.encode("utf-8", "surrogatepass"))
    for at in range(8 * len(data) if len(data) <= most else 0):
        data[at // 8] ^= 1 << at % 8
        with suppress(UnicodeDecodeError):
            yield data.decode()
        data[at // 8] ^= 1 << at % 8


def settings_from(rows: Mapping[str, Any]) -> IndexSettings:
    """Settings from the values of their rows. Raises `KeyError` for one that lacks."""
    return IndexSettings(
        model=rows["model"],
        fingerprint=rows["fingerprint"],
        heads_fingerprint=rows["heads_fingerprint"],
        dimension=rows["dimension"],
        class_labels=_tuple(rows["class_labels"]),
        entity_types=_tuple(rows["entity_types"]),
    )


def write_settings(connection: sqlite3.Connection, settings: IndexSettings) -> None:
    """Put the settings into the table, in the caller's transaction."""
    rows = [(name, json.dumps(value)) for name, value in asdict(settings).items()]
    connection.executemany("INSERT OR REPLACE INTO settings (name, value) VALUES (?, ?)", rows)
    _write_digests(connection)


def read_setting(connection: sqlite3.Connection, name: str) -> Any:
    """A JSON value kept beside the settings, `None` where it is not set."""
    row = connection.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
    return None if row is None else json.loads(row[0])


def write_setting(connection: sqlite3.Connection, name: str, value: int | str | None) -> None:
    """Set a JSON value, or with `None` unset it, in the caller's transaction."""
    if value is None:
        connection.execute("DELETE FROM settings WHERE name = ?", (name,))
    else:
        connection.execute("INSERT OR REPLACE INTO settings (name, value) VALUES (?, ?)", (name, json.dumps(value)))
    _write_digests(connection)


def _write_digests(connection: sqlite3.Connection) -> None:
    rows = connection.execute("SELECT name, value FROM settings WHERE name <> ? ORDER BY name", (DIGESTS,)).fetchall()
    digests = json.dumps({name: _digest(name, value) for name, value in rows})
    connection.execute("INSERT OR REPLACE INTO settings (name, value) VALUES (?, ?)", (DIGESTS, digests))


def _digest(name: str, value: object) -> str:
    return hashlib.blake2b(f"{name}={value}".encode(errors="replace"), digest_size=8).hexdigest()


def _tuple(values: list[str] | None) -> tuple[str, ...] | None:
    return None if values is None else tuple(values)
