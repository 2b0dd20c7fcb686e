"""A damaged index written anew: the work of `repair.py`, which has the table of what is restored from what."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from indexer import vectors
from indexer.changes import Change, CommitState, apply_change, hash_content, read_commit, write_commit
from indexer.durable import sync
from indexer.errors import CorruptIndexError, ModelError
from indexer.lock import acknowledged_commit
from indexer.merging import CODE_CHOICES, CODE_SPACE_SHA256, CODES
from indexer.metadata import connect_writer, transaction
from indexer.pages import DamagedDatabase
from indexer.rebuild_vectors import SegmentRebuilder, VectorPool, plausible
from indexer.records import Analysis, Document
from indexer.salvage import Salvage, read_manifest, read_state
from indexer.salvage_vectors import read_pending_rows, read_segment_files
from indexer.segments import VECTORS_SUFFIX, write_segment
from indexer.settings import (
    INDEX_ID,
    Analyser,
    IndexSettings,
    check_model,
    restore_settings,
    settings_from,
    settings_of,
    settings_of_vectors,
    write_setting,
    write_settings,
)
from indexer.store import LOCK, META, REPAIRED, RETAGGED, SEGMENTS
from indexer.stored import DIGEST_BYTES, StoredDocument, StoredPassage, matches_digest, sum_digests
from indexer.verify import Fault

KEPT = "damaged"
UNREPORTED = "repair.lost.json"
"""What a repair has lost, until it has been reported."""

_DRAFT, _SCRATCH = "meta.sqlite.repair", "meta.sqlite.rows"
_MADE = "e"  # at the end of the name of files that hold embedded vectors until a repair is complete
_BATCH = 256  # documents in memory at a time
_EMBEDDED = 2_048  # vectors after which those that were made are written down, for a run that is killed
_SAMPLE = 3  # texts by which a model shows that it made the index's vectors
_SAME = 0.9999  # cosine

ModelLoader = Callable[[str | None], Analyser]
"""Gives the model with this name, or the one that the caller was given in its place."""


@dataclass
class _Draft:
    """A document on its way into the new database: with the vectors that it lacks once they are made."""

    stored: StoredDocument
    pooled: bytes | None


@dataclass
class Rebuild:
    """One run. The names of its methods tell the way."""

    path: Path
    load: ModelLoader | None
    lost: list[Fault] = field(default_factory=list)
    embedded: list[int] = field(default_factory=list)
    _model: Analyser | None = None

    def run(self) -> list[Fault]:
        """Write the new database and segments, and give the word: from then on `_finish` puts them in their place."""
        self._clear()
        try:
            self._write()
        except BaseException:
            with suppress(OSError):  # the room that they take may be what was missing
                self._clear()
            raise
        self._give_the_word()
        return self.lost

    def _write(self) -> None:
        self.folder = self.path / SEGMENTS
        self.folder.mkdir(exist_ok=True)
        self.database = self._open()
        self.salvage = Salvage(self.database, self.path / _SCRATCH)
        self.acknowledged = acknowledged_commit(self.path / LOCK)
        self.records = read_manifest(self.database)
        self._read_settings()
        self._read_vectors()
        self.connection = connect_writer(self.path / _DRAFT)
        try:
            self.connection.execute("PRAGMA synchronous = OFF")  # it is synced as a whole at the end
            self.connection.execute("PRAGMA foreign_keys = OFF")
            self._begin()
            self._write_documents()
            self._write_vectors()
            self._end()
        finally:
            self.connection.close()
            self.salvage.connection.close()

    # Reading

    def _clear(self) -> None:
        for name in (_DRAFT, _SCRATCH):
            for suffix in ("", "-wal", "-shm", "-journal"):
                (self.path / f"{name}{suffix}").unlink(missing_ok=True)
        (self._kept / "lost.jsonl").unlink(missing_ok=True)

    def _open(self) -> DamagedDatabase:
        """The database; with what is behind a damaged frame of its log, where acknowledged commits would be missing.

        Or may be, as LOCK does not say.
        """
        database = DamagedDatabase(self.path / META, whole_log=False)
        state, acknowledged = read_state(database), acknowledged_commit(self.path / LOCK)
        if state is None or not acknowledged or state.number < acknowledged:
            whole = DamagedDatabase(self.path / META, whole_log=True)
            further = read_state(whole)
            if state is None or (further is not None and further.number > state.number):
                database = whole
        if not any(True for _ in database.cells("documents")) and read_state(database) is None:
            raise CorruptIndexError(f"{self.path} cannot be repaired: {META} has no row that can be read")
        return database

    def _read_settings(self) -> None:
        stored = {row[0]: row[1] for row in self.database.rows("settings") if len(row) == 2}
        rows, wrong = restore_settings(stored)
        self.retagged = rows.get(RETAGGED, 0 if RETAGGED in wrong else None)
        self.index_id = rows.get(INDEX_ID)
        self.codes = rows.get(CODES) if rows.get(CODES) in CODE_CHOICES else None
        self.space_sha256 = rows.get(CODE_SPACE_SHA256)
        try:
            self.settings = settings_from(rows)
        except (KeyError, TypeError):
            self.settings = self._settings_of_vectors(stored) or self._settings_of_model(rows)

    def _settings_of_vectors(self, stored: dict[str, Any]) -> IndexSettings | None:
        """The settings of vectors that were made elsewhere, where that is what is left says, and a vector proves it."""
        with suppress(ValueError, TypeError):
            self.settings = settings_of_vectors(int(stored.get("dimension", "")))
            wanted = {name: json.dumps(value) for name, value in asdict(self.settings).items()}
            if self.settings.dimension > 0 and wanted.items() <= stored.items():
                self._read_vectors()
                return self.settings if self.pool.highest_vid else None
        return None

    def _settings_of_model(self, rows: dict[str, Any]) -> IndexSettings:
        """The settings that are left, and for the others those of the given model, which must make the vectors."""
        model = self._load(rows.get("model"))
        known = asdict(settings_of(model, tags=rows.get("heads_fingerprint", "") is not None))
        self.settings = settings = settings_from({**known, **{name: rows[name] for name in known if name in rows}})
        check_model(settings, model, place=str(self.path), heads=False)
        self._read_vectors()
        compared = 0
        for stored, digest in self.salvage.documents():
            passage = stored.passages[0] if stored.passages else None
            if passage is None or not matches_digest(stored, digest) or passage.vid not in self.pool:
                continue
            made = vectors.normalise(model.analyse([stored.text], tags=False)[0].vectors)[0]
            kept = vectors.normalise(self.pool.row(passage.vid).astype(np.float32)[None])[0]
            if float(made @ kept) < _SAME:
                raise ModelError(
                    f"{self.path} has lost its settings, and {model.name} does not make the vectors that are in it: "
                    "pass the --model that built it"
                )
            compared += 1
            if compared == _SAMPLE:
                break
        if not compared and (any(self.folder.glob(f"*{VECTORS_SUFFIX}")) or any(self.database.rows("pending"))):
            raise ModelError(
                f"{self.path} has lost its settings, and no vector of it can be compared with those of {model.name}: "
                "pass the --model that built it"
            )
        return settings

    def _read_vectors(self) -> None:
        owners = dict(self.salvage.connection.execute("SELECT vid, doc FROM passages").fetchall())
        removed = {row[3]: row[2] for row in self.database.rows("changes") if row[1:2] == ("remove",) and len(row) == 4}
        dimension = self.settings.dimension
        segments = read_segment_files(self.folder, self.records, dimension, owners, removed)
        self.pool = VectorPool([*segments, read_pending_rows(self.database, dimension)], removed=removed.keys())

    def _load(self, name: str | None) -> Analyser:
        if self._model is None:
            if self.load is None:
                raise ModelError(f"{self.path} can only be repaired with the model that built it: pass --model")
            self._model = self.load(name)
        return self._model

    @property
    def model(self) -> Analyser:
        """The index's own model. Raises `ModelError`."""
        model = self._load(self.settings.model)
        check_model(self.settings, model, place=str(self.path), heads=False)
        return model

    # Documents

    def _begin(self) -> None:
        """An empty index whose numbers go on behind those that were given, in any row that is left."""
        state = self.salvage.state
        number = max(
            state.number if state else 0,
            self.acknowledged,
            *(_leading_number(file.name) for file in self.folder.iterdir() if not _is_made(file)),
            0,
        )
        with transaction(self.connection):
            write_settings(self.connection, self.settings)
            for name, value in ((INDEX_ID, self.index_id), (CODES, self.codes), (RETAGGED, self.retagged)):
                write_setting(self.connection, name, value)
            start = CommitState(number=number)
            write_commit(self.connection, start.chained_to(state.chain if state else start.chain))

    def _write_documents(self) -> None:
        """Sound documents first, then those that can be proven, and only if some are missing what else can be read.

        What is left of the sum of all digests is the digest of a damaged one, if it is one that is missing.
        """
        self.salvage.restore_names(self.settings.entity_types or (), self.settings.class_labels or ())
        damaged: list[tuple[StoredDocument, bytes]] = []
        self.there: set[int] = set()
        self.given_up: set[int] = set()
        self.proven, self.unproven, self.digest_sum = 0, 0, bytes(DIGEST_BYTES)
        self.ids: set[str] = set()
        self.live: dict[int, int] = {}
        drafts: list[_Draft] = []
        for stored, digest in self.salvage.documents():
            if not matches_digest(stored, digest):
                damaged.append((stored, digest))
                continue
            drafts.append(self._draft(stored))
            if len(drafts) == _BATCH:
                self._put_in(drafts)
                drafts = []
        self._put_in(drafts)
        if not self._complete:
            self._write_damaged(damaged)
        self._report_missing()

    def _write_damaged(self, damaged: list[tuple[StoredDocument, bytes]]) -> None:
        missing = self.salvage.missing(self._done)
        loose = []
        for row in self.salvage.loose:
            numbered = self._numbered(row, missing)
            damaged += numbered
            if not numbered:
                loose.append(row)
        for doc in (stored.doc for stored, _ in damaged):
            missing.pop(doc, None)
        for doc, id_ in missing.items():
            found = self.salvage.find_in_pages(doc, id_) if id_ is not None else None
            if found is not None:
                damaged.append(found)
        left: list[tuple[StoredDocument, Analysis | None]] = []
        state = self.salvage.state
        for stored, digest in damaged:
            digests = {digest}
            if state is not None and self.proven == state.documents - 1:
                digests.add(sum_digests(state.digest_sum, removed=[self.digest_sum]))
            if stored.doc not in self._done:
                draft, analysis = self._restored(stored, digests)
                if draft is not None:
                    self._put_in([draft])
                else:
                    left.append((stored, analysis))
        for stored, analysis in left if not self._complete else ():
            if stored.doc not in self._done:
                self.unproven += 1
                self._keep_readable(self.salvage.readable(stored, analysis, self.settings))
        for row in loose if not self._complete else ():
            self._keep_loose(row)

    def _keep_readable(self, stored: StoredDocument) -> None:
        """A document that cannot be proven: in the index, or where another has its id, as a record."""
        problem = "it does not match its digest; what can be read of it"
        if stored.id in self.ids:
            self._lose(stored, f"{problem} is in lost.jsonl, as another document has its id")
            return
        if not all(self.pool.has(passage.vid, stored.doc) for passage in stored.passages):
            stored = replace(stored, passages=())  # nothing proves their numbers: they get new ones
        self.lost.append(
            Fault(f"document '{stored.id}'", f"{problem} was kept, and may be wrong: add the document again")
        )
        self._put_in([_Draft(stored, None)])

    def _keep_loose(self, row: tuple[Any, ...]) -> None:
        """A row of `documents` whose number is not known, as a record, where its id and its text can be read."""
        if len(row) < 4 or not all(isinstance(value, str) for value in row[1:4]) or row[1] in self.ids:
            return
        self.ids.add(row[1])
        problem = "its row is damaged; what can be read of it is in lost.jsonl, to be added"
        self._record(row[1], row[2], row[3], problem)

    @property
    def _done(self) -> set[int]:
        return self.there | self.given_up

    @property
    def _complete(self) -> bool:
        """Whether all documents of the last commit are proven: what else can be read is what had been removed."""
        state = self.salvage.state
        return state is not None and (self.proven, self.digest_sum) == (state.documents, state.digest_sum)

    def _numbered(self, row: tuple[Any, ...], missing: Iterable[int]) -> list[tuple[StoredDocument, bytes]]:
        """A row of `documents` whose number is damaged: under that of a document that has none and makes it right."""
        for doc in missing:
            found = self.salvage.as_document(row, doc)
            if found is not None and matches_digest(*found):
                return [found]
        return []

    def _draft(self, stored: StoredDocument) -> _Draft:
        """A document that is proven to be what it was."""
        self.proven += 1
        self.digest_sum = sum_digests(self.digest_sum, added=[stored.digest()])
        pooled = self.salvage.pooled(stored.doc, self.settings.dimension) if len(stored.passages) > 1 else None
        return _Draft(stored, pooled)

    def _restored(self, stored: StoredDocument, digests: set[bytes]) -> tuple[_Draft | None, Analysis | None]:
        """A document that does not match its digest, as it was where that can be found; what the model says of it."""
        vids = self.pool.vids_of(stored.doc)
        if any(matches_digest(stored, digest) for digest in digests):
            return self._draft(stored), None
        for candidate in self.salvage.turned(stored):
            if any(matches_digest(candidate, digest) for digest in digests):
                return self._draft(candidate), None
        analysis = self._analyse(stored)
        for candidate in self.salvage.candidates(stored, analysis, vids):
            if any(matches_digest(candidate, digest) for digest in digests):
                return self._draft(candidate), analysis
        return None, analysis

    def _analyse(self, stored: StoredDocument) -> Analysis | None:
        if self.settings.fingerprint is None or self.load is None or not stored.text:
            return None
        return self.model.analyse([stored.text], tags=self._tags_again)[0]

    @property
    def _tags_again(self) -> bool:
        return self.settings.tagged and self.model.heads_fingerprint == self.settings.heads_fingerprint

    def _put_in(self, drafts: Sequence[_Draft]) -> None:
        """Write documents with the vectors that they have; those that lack some are embedded first."""
        needy = [draft for draft in drafts if self._lacks(draft)]
        if needy and self.settings.fingerprint is not None:
            texts = [draft.stored.text for draft in needy if draft.stored.text]
            found = iter(self.model.analyse(texts, tags=False) if texts else [])
            for draft in needy:
                if draft.stored.text:
                    self._embed(draft, next(found))
        change = Change()
        for draft in drafts:
            if self._lacks(draft):
                self._lose(draft.stored, "its vector is lost; its text and metadata are in lost.jsonl, to be added")
            elif draft.stored.id not in self.ids:
                change.put_in(draft.stored, draft.pooled)
                self.there.add(draft.stored.doc)
                self.ids.add(draft.stored.id)
                self.live.update((passage.vid, draft.stored.doc) for passage in draft.stored.passages)
        with transaction(self.connection):
            apply_change(self.connection, change, pending=False)

    def _lacks(self, draft: _Draft) -> bool:
        passages = draft.stored.passages
        return (
            not passages
            or any(not self.pool.has(passage.vid, draft.stored.doc) for passage in passages)
            or (len(passages) > 1 and draft.pooled is None)
        )

    def _embed(self, draft: _Draft, analysis: Analysis) -> None:
        """Put the vectors that a document lacks among the sources; under its own numbers, if its passages are the same.

        A document whose vector was given has one passage, whatever its text is like.
        """
        stored = draft.stored
        places = [(p.start, p.end, p.tokens) for p in stored.passages]
        rows, pooled = vectors.normalise(analysis.vectors), vectors.normalise(analysis.pooled[None])
        if len(places) == 1 and stored.content_hash != hash_content(Document(stored.id, stored.text)):
            rows, made = pooled, places
        else:
            made = [(p.start, p.end, p.tokens) for p in analysis.passages]
        if places != made:
            highest = self._highest_vid()
            passages = tuple(StoredPassage(highest + 1 + n, *place) for n, place in enumerate(made))
            draft.stored = stored = replace(stored, passages=passages)
        halves = rows.astype("<f2")
        wanted = [n for n, passage in enumerate(stored.passages) if not self.pool.has(passage.vid, stored.doc)]
        vids = [stored.passages[n].vid for n in wanted]
        self.pool.add(stored.doc, vids, halves[wanted])
        self.embedded += vids
        if len(self.embedded) >= _EMBEDDED:
            self._write_down()
        if len(stored.passages) > 1 and draft.pooled is None:
            draft.pooled = pooled.astype("<f2").tobytes()

    def _write_down(self) -> None:
        """Put the vectors made so far into files, where the next run finds them if this one is killed."""
        name = f"{max(self.embedded):010d}{_MADE}"
        blocks = self.pool.blocks(sorted(self.embedded))
        write_segment(self.folder, name, blocks, dimension=self.settings.dimension, space=None)
        self.embedded.clear()

    def _highest_vid(self) -> int:
        given = [row[1] for row in self.database.rows("sqlite_sequence") if row[:1] == ("passages",) and len(row) == 2]
        return max([self.pool.highest_vid, *self.live, *map(plausible, given)])

    def _lose(self, stored: StoredDocument, problem: str) -> None:
        """A document without a vector cannot be found: it is kept, as a record that can be added again."""
        self.given_up.add(stored.doc)
        self._record(stored.id, stored.text, stored.metadata_json, problem)

    def _record(self, id_: str, text: str, metadata: str, problem: str) -> None:
        record = {"id": id_, "text": text, "metadata": _json(metadata)}
        self._kept.mkdir(exist_ok=True)
        with (self._kept / "lost.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self.lost.append(Fault(f"document '{id_}'", problem))

    def _report_missing(self) -> None:
        state, missing = self.salvage.state, {} if self._complete else self.salvage.missing(self._done)
        for doc, id_ in sorted(missing.items()):
            self.lost.append(Fault(f"document '{id_}'" if id_ else f"document number {doc}", "it is lost"))
        reported = len(missing) + self.unproven
        if state is not None and self.acknowledged > state.number:
            self.lost.append(
                Fault(f"{META}-wal", f"what commits {state.number + 1} to {self.acknowledged} have changed is lost")
            )
        if state is None and self.acknowledged > (last := self._last_seen()):
            problem = "the last commit's row is lost, and so may be what commits"
            self.lost.append(Fault(f"{META}-wal", f"{problem} {last + 1} to {self.acknowledged} have changed"))
        if state is not None and not self._complete:
            gone = state.documents - self.proven - reported
            if gone > 0:
                self.lost.append(Fault("documents", f"{gone} are lost; which ones is not known"))
            elif self.proven >= state.documents:
                problem = "some are not as the last commit left them, but as an older one; which ones is not known"
                self.lost.append(Fault("documents", problem))

    def _last_seen(self) -> int:
        """The last commit of which there is a document or a segment, 0 where there is none."""
        last = self.salvage.connection.execute(
            "SELECT max(written) FROM documents WHERE written <= ?", (self.acknowledged,)
        ).fetchone()[0]
        return max([last or 0, *(_leading_number(record.name) for record in self.records)])

    def _write_vectors(self) -> None:
        segments = SegmentRebuilder(
            self.connection,
            self.database,
            self.folder,
            self.pool,
            self.live,
            self.settings.dimension,
            self.codes or "auto",
            self.space_sha256,
            self._keep,
        )
        self.named = segments.write(highest_doc=max(self.there, default=0))

    # The end

    def _end(self) -> None:
        with transaction(self.connection):
            write_commit(self.connection, read_commit(self.connection).following(Change()))
        self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    @property
    def _kept(self) -> Path:
        return self.path / f"{KEPT}.tmp"

    def _keep(self, file: Path) -> None:
        """A second name for a file that will not be named by the index any more."""
        target = self._kept / file.name
        if not file.is_file() or target.exists():
            return
        self._kept.mkdir(exist_ok=True)
        try:
            os.link(file, target)
        except OSError:  # a file system without links
            shutil.copy2(file, target.with_name(f"{target.name}.tmp"))
            target.with_name(f"{target.name}.tmp").rename(target)

    def _give_the_word(self) -> None:
        for file in self.folder.iterdir():
            if file.name not in self.named and not _is_made(file):
                self._keep(file)
        if self._kept.is_dir():
            sync(self._kept)
        lost = self.path / UNREPORTED
        lost.write_text(json.dumps([asdict(fault) for fault in self.lost]), encoding="utf-8")
        for suffix in ("-wal", "-shm"):
            (self.path / f"{_DRAFT}{suffix}").unlink(missing_ok=True)
        (self.path / _SCRATCH).unlink(missing_ok=True)
        records = [self._kept / "lost.jsonl"] if (self._kept / "lost.jsonl").is_file() else []
        for file in (lost, *records, self.path / _DRAFT, self.folder):
            sync(file)
        (self.path / _DRAFT).rename(self.path / REPAIRED)
        sync(self.path)


def _is_made(file: Path) -> bool:
    return file.name.partition(".")[0].endswith(_MADE)


def _leading_number(name: str) -> int:
    digits = name[:10]
    return int(digits) if digits.isdecimal() else 0


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
