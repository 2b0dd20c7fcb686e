"""Documents → analysis → store: the whole way of the text in one function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from indexer.collector import collecting_rarely
from indexer.errors import InputError, ModelError
from indexer.records import Analysis, Document, Passage
from indexer.settings import Analyser, IndexSettings, check_model, settings_of
from indexer.store import Action, Entry, IndexWriter

# One transaction holds at most so many documents, and closes early when their texts are long: some seconds of work on
# two cores. Of fewer short texts too few are alike in length to fill the model's batches (256: a tenth slower).
BATCH_DOCUMENTS = 1_024
BATCH_CHARACTERS = 250_000
# Documents that bring their vector and need no model are stored so fast that a transaction can hold more of them: so
# many, and so many of their characters, in place of one.
GIVEN_DOCUMENTS = 8
GIVEN_CHARACTERS = 64


@dataclass(slots=True)
class Report:
    """What became of the documents. `duplicates`: ids that came again, the last one counts."""

    added: int = 0
    replaced: int = 0
    updated: int = 0
    unchanged: int = 0
    duplicates: int = 0

    @property
    def documents(self) -> int:
        """Documents read."""
        return self.added + self.replaced + self.updated + self.unchanged + self.duplicates


def index(
    documents: Iterable[Document],
    model: Analyser | None,
    writer: IndexWriter,
    *,
    on_commit: Callable[[Report], None] | None = None,
    on_error: Callable[[InputError], None] | None = None,
) -> Report:
    """Embed, tag and store documents; what is in the index already is skipped, so that a run can be repeated.

    Each batch is durable when `on_commit` is called with a copy of the report so far. Documents that bring their vector
    need no model, unless the index has tags. `on_error` is called with what is wrong with a document that does not fit
    the index, which is then passed over; without it that is raised. Raises `FingerprintError` where the model is not
    the index's, and whatever `documents` raises, after the batch before it was stored.
    """
    if model is not None:
        check_model(writer.settings, model, place=str(writer.path), heads=True)
    with collecting_rarely():
        return _index(documents, model, writer, on_commit, on_error)


def _index(
    documents: Iterable[Document],
    model: Analyser | None,
    writer: IndexWriter,
    on_commit: Callable[[Report], None] | None,
    on_error: Callable[[InputError], None] | None,
) -> Report:
    report, first_commit = Report(), writer.state.number + 1
    for batch in batched(fitting(documents, model, writer.settings, on_error), tagged=writer.settings.tagged):
        last = {document.id: document for document in batch}
        report.duplicates += len(batch) - len(last)
        plans = writer.plan(list(last.values()), since=first_commit)
        to_embed = [plan.document for plan in plans if plan.action is Action.EMBED]
        analyses = iter(analyse(to_embed, model, writer.settings))
        writer.write(
            [
                Entry(plan.document, next(analyses) if plan.action is Action.EMBED else None)
                for plan in plans
                if plan.action is not Action.SKIP
            ]
        )
        for plan in plans:
            if plan.repeated:
                report.duplicates += 1
            elif plan.action is Action.SKIP:
                report.unchanged += 1
            elif not plan.exists:
                report.added += 1
            elif plan.action is Action.UPDATE:
                report.updated += 1
            else:
                report.replaced += 1
        if on_commit is not None:
            on_commit(replace(report))
    return report


def fitting(
    documents: Iterable[Document],
    model: Analyser | None,
    settings: IndexSettings,
    on_error: Callable[[InputError], None] | None = None,
) -> Iterator[Document]:
    """The documents that the index can take; for others `on_error` is called, or their `InputError` raised."""
    for document in documents:
        try:
            _check_fit(document, model, settings)
        except InputError as error:
            if on_error is None:
                raise
            on_error(error)
        else:
            yield document


def _check_fit(document: Document, model: Analyser | None, settings: IndexSettings) -> None:
    """Raise `InputError` for a document without a vector where it needs one, or with one of another dimension."""
    place = f"document '{document.id}'"
    if document.vector is None:
        if model is None or settings.fingerprint is None:
            raise InputError(
                "has no vector, and the index holds vectors that were made elsewhere: give it one with --vectors",
                source=place,
            )
    elif (shape := np.shape(document.vector)) != (settings.dimension,):
        raise InputError(f"its vector has shape {shape}, the index's {(settings.dimension,)}", source=place)


def analyse(documents: Sequence[Document], model: Analyser | None, settings: IndexSettings) -> list[Analysis]:
    """Analyses of documents that are `fitting`, with the vectors that some bring."""
    needed = [document.vector is None or (settings.tagged and bool(document.text)) for document in documents]
    texts = [document.text for document, needs in zip(documents, needed, strict=True) if needs]
    found = iter(model.analyse(texts, tags=settings.tagged) if model and texts else [])
    analyses = []
    for document, needs in zip(documents, needed, strict=True):
        analysis = next(found) if needs else None
        if document.vector is not None or analysis is None:
            analysis = with_vector(document, analysis)
        analyses.append(analysis)
    return analyses


def with_vector(document: Document, analysis: Analysis | None) -> Analysis:
    """The analysis of a document that brings its vector: one passage; tags from `analysis`, if there is one.

    What the vector holds was checked when the document came (`given.as_vector`).
    """
    vector = np.asarray(document.vector, dtype=np.float32)
    tokens = sum(passage.tokens for passage in analysis.passages) if analysis else 0
    return Analysis(
        passages=(Passage(0, len(document.text), tokens),),
        vectors=vector[None],
        pooled=vector,
        label=analysis.label if analysis else None,
        spans=analysis.spans if analysis else (),
    )


def retag(model: Analyser, writer: IndexWriter, *, on_commit: Callable[[int], None] | None = None) -> int:
    """Give every document the class and entities that the model finds now; embeddings stay as they are.

    Returns how many documents were tagged. A run that was stopped goes on where it was. Raises
    `FingerprintError` where the model's embeddings are not the index's, and `ModelError` where it has no heads.
    """
    if writer.settings.fingerprint is None:
        raise ModelError(
            f"{writer.path} holds vectors that were made elsewhere, and would become those of {model.name}: build a "
            "new index with --vectors, --tags and --model"
        )
    check_model(writer.settings, model, place=str(writer.path), heads=False)
    settings = settings_of(model)
    if not settings.tagged:
        raise ModelError(f"model {model.name} has no heads: it gives embeddings, but no class or entities")
    writer.begin_retagging(settings)
    done, last = 0, writer.retagged_up_to or 0
    while documents := writer.documents_after(last, BATCH_DOCUMENTS, characters=BATCH_CHARACTERS):
        writer.retag(documents, model.analyse([stored.text for stored in documents]))
        done, last = done + len(documents), documents[-1].doc
        if on_commit is not None:
            on_commit(done)
    writer.end_retagging()
    return done


def batched(documents: Iterable[Document], *, tagged: bool = True) -> Iterator[list[Document]]:
    """Batches of at most `BATCH_DOCUMENTS` that need the model; an error is raised after what came before it.

    `tagged`: the index has class and entities, so that documents that bring their vector need the model, too.
    """
    batch: list[Document] = []
    documents_left = characters_left = 0
    iterator = iter(documents)
    while True:
        try:
            document = next(iterator, None)
        except Exception:
            if batch:
                yield batch
            raise
        if document is None:
            break
        if not batch:
            documents_left = BATCH_DOCUMENTS * GIVEN_DOCUMENTS
            characters_left = BATCH_CHARACTERS * GIVEN_CHARACTERS
        given = document.vector is not None and not tagged
        batch.append(document)
        documents_left -= 1 if given else GIVEN_DOCUMENTS
        characters_left -= len(document.text) * (1 if given else GIVEN_CHARACTERS)
        if documents_left <= 0 or characters_left <= 0:
            yield batch
            batch = []
    if batch:
        yield batch
