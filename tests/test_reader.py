"""Readers: they follow commits, hold one still, never see half a batch, and refuse what is no index."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import numpy as np
import pytest
from fakes import DemoAnalyser, build_index, document_scores, entries
from pyroaring import BitMap

from indexer.errors import CorruptIndexError, FormatError, InputError, NotAnIndexError
from indexer.reader import IndexReader, folder_bytes
from indexer.records import Document
from indexer.segments import SegmentFile
from indexer.settings import settings_of
from indexer.snapshot import Snapshot
from indexer.store import IndexWriter

MODEL = DemoAnalyser()


def documents(*numbers: int) -> list[Document]:
    return [Document(f"d{n}", f"text {n} Ada ball", {"n": n}) for n in numbers]


def ids_found(snapshot: Snapshot, n: int = 1000) -> set[str]:
    """The ids of all documents that a vector search reaches."""
    return set(snapshot.ids(snapshot.search_vectors(MODEL.vector("text"), n)[0].docs.tolist()).values())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index"


@pytest.fixture
def writer(path: Path) -> Iterator[IndexWriter]:
    with IndexWriter(path, create=settings_of(MODEL)) as opened:
        opened.write(entries(documents(1, 2, 3), MODEL))
        yield opened


# Following


def test_a_reader_sees_each_commit(path: Path, writer: IndexWriter) -> None:
    with IndexReader(path) as reader:
        seen = []
        for change in (
            lambda: None,
            lambda: writer.write(entries(documents(4), MODEL)),
            lambda: writer.remove(["d1"]),
            writer.seal,
            lambda: writer.write(entries(documents(1, 5), MODEL)),
            lambda: writer.remove(["d2", "d5"]),
            writer.seal,
            lambda: writer.remove(["d4"]),
        ):
            change()
            with reader.snapshot() as snapshot:
                seen.append((snapshot.count(), "".join(sorted(id_[1] for id_ in ids_found(snapshot)))))
    assert seen == [
        (3, "123"),
        (4, "1234"),
        (3, "234"),
        (3, "234"),
        (5, "12345"),
        (3, "134"),
        (3, "134"),
        (2, "13"),
    ]


def test_a_replaced_text_is_found_by_its_new_vector_only(path: Path, writer: IndexWriter) -> None:
    with IndexReader(path) as reader:
        with reader.snapshot() as snapshot:
            (before,) = {snapshot.number_of("d1")}
        for seal in (False, True):
            text = f"quite another text {seal}"
            writer.write(entries([Document("d1", text)], MODEL))
            if seal:
                writer.seal()
            with reader.snapshot() as snapshot:
                assert snapshot.number_of("d1") == before
                found, _ = snapshot.search_vectors(MODEL.vector(text), 100)
                assert found.docs.tolist().count(before) == 1
                assert found.docs[0] == before
                assert found.scores[0] == pytest.approx(1.0, abs=1e-3)


_WRITE = """
import sys
from fakes import DemoAnalyser, entries
from indexer.records import Document
from indexer.store import IndexWriter
model = DemoAnalyser()
with IndexWriter(sys.argv[1]) as writer:
    for line in sys.stdin:
        writer.write(entries([Document(line.strip(), "text of " + line)], model))
        print("done", flush=True)
"""


def test_a_reader_sees_commits_of_another_process(path: Path) -> None:
    build_index(path, documents(1))
    with (
        IndexReader(path) as reader,
        subprocess.Popen(
            [sys.executable, "-c", _WRITE, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        ) as child,
    ):
        assert child.stdin is not None
        assert child.stdout is not None
        for expected in ({"d1", "x"}, {"d1", "x", "y"}):
            child.stdin.write(f"{max(expected)}\n")
            child.stdin.flush()
            assert child.stdout.readline() == "done\n"
            with reader.snapshot() as snapshot:
                assert ids_found(snapshot) == expected
        child.stdin.close()
        assert child.wait() == 0
        with reader.snapshot() as snapshot:
            assert ids_found(snapshot) == {"d1", "x", "y"}


def test_a_snapshot_is_held_still_while_the_writer_commits(path: Path, writer: IndexWriter) -> None:
    with IndexReader(path) as reader:
        with reader.snapshot() as snapshot:
            writer.remove(["d1"])
            writer.write(entries([Document("d2", "new text"), *documents(4)], MODEL))
            writer.seal()
            assert snapshot.count() == 3
            assert ids_found(snapshot) == {"d1", "d2", "d3"}
            assert {each.text for each in snapshot.documents([1, 2, 3]).values()} == {
                f"text {n} Ada ball" for n in (1, 2, 3)
            }
        with reader.snapshot() as snapshot:
            assert ids_found(snapshot) == {"d2", "d3", "d4"}


def test_readers_in_other_threads_never_see_half_a_batch(path: Path, writer: IndexWriter) -> None:
    # Every commit replaces all three documents by texts of one generation.
    faults: list[object] = []
    stop = threading.Event()

    def follow() -> None:
        with IndexReader(path) as reader:
            while not stop.is_set():
                with reader.snapshot() as snapshot:
                    found, _ = snapshot.search_vectors(MODEL.vector("text"), 100)
                    texts = {each.text.split()[-1] for each in snapshot.documents([1, 2, 3]).values()}
                    if sorted(found.docs.tolist()) != [1, 2, 3] or len(texts) != 1:
                        faults.append((found, texts))

    threads = [threading.Thread(target=follow) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for generation in range(30):
            writer.write(entries([Document(f"d{n}", f"text {n} {generation}") for n in (1, 2, 3)], MODEL))
            if generation % 10 == 9:
                writer.seal()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert faults == []


@pytest.mark.usefixtures("writer")
def test_a_reader_used_by_several_threads_answers_each(path: Path) -> None:
    with IndexReader(path) as reader:
        found: list[set[str]] = []

        def ask() -> None:
            for _ in range(20):
                with reader.snapshot() as snapshot:
                    found.append(ids_found(snapshot))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [{"d1", "d2", "d3"}] * 80


def test_many_small_commits_are_followed_one_by_one(path: Path, writer: IndexWriter) -> None:
    # The vectors that no segment holds yet come in pieces, which are put together again from time to time.
    texts = {f"d{n}": f"text {n} Ada ball" for n in (1, 2, 3)}
    query = MODEL.vector("Ada")
    with IndexReader(path) as reader:
        for number in range(4, 45):
            writer.write(entries(documents(number), MODEL))
            texts[f"d{number}"] = f"text {number} Ada ball"
            if number % 3 == 0:
                writer.remove([f"d{number - 2}"])
                del texts[f"d{number - 2}"]
            with reader.snapshot() as snapshot:
                assert len(snapshot.view.tail) <= 16
                found, _ = snapshot.search_vectors(query, 100)
                ids = snapshot.ids(found.docs.tolist())
            scores = {ids[doc]: score for doc, score in zip(found.docs.tolist(), found.scores.tolist(), strict=True)}
            assert scores == pytest.approx(document_scores(texts, query, MODEL), abs=1e-12)


def test_a_reader_of_an_older_commit_does_not_take_the_others_back(path: Path, writer: IndexWriter) -> None:
    with IndexReader(path) as reader, reader.snapshot() as old:
        writer.write(entries(documents(4), MODEL))
        with reader.snapshot() as new:
            assert (ids_found(old), ids_found(new)) == ({"d1", "d2", "d3"}, {"d1", "d2", "d3", "d4"})
            assert (old.count(), new.count()) == (3, 4)
        assert old.view.commit < new.view.commit
        with reader.snapshot() as again:
            assert again.view is new.view


# What a snapshot gives


@pytest.mark.usefixtures("writer")
def test_documents_are_whole(path: Path) -> None:
    with IndexReader(path) as reader, reader.snapshot() as snapshot:
        (stored,) = snapshot.documents([2, 99]).values()
        assert (stored.doc, stored.id, stored.text, stored.metadata) == (2, "d2", "text 2 Ada ball", {"n": 2})
        assert (stored.label.name, stored.label.score) == ("sport", 0.75) if stored.label else False
        assert [(span.type, span.start, span.end, span.score) for span in stored.spans] == [("PER", 7, 10, 0.5)]
        assert [(p.vid, p.start, p.end, p.tokens) for p in stored.passages] == [(2, 0, 15, 4)]


@pytest.mark.usefixtures("writer")
def test_numbers_and_ids_belong_together(path: Path) -> None:
    with IndexReader(path) as reader, reader.snapshot() as snapshot:
        assert [snapshot.number_of(id_) for id_ in ("d1", "d3", "nowhere")] == [1, 3, None]
        assert snapshot.ids([3, 1]) == {1: "d1", 3: "d3"}


def test_the_vector_of_a_document_is_that_of_all_its_passages(path: Path, writer: IndexWriter) -> None:
    long = " ".join(f"word{n}" for n in range(30))
    writer.write(entries([Document("long", long)], MODEL))
    for seal in (False, True):
        if seal:
            writer.seal()
        with IndexReader(path) as reader, reader.snapshot() as snapshot:
            for id_, text in (("d2", "text 2 Ada ball"), ("long", long)):
                vector = MODEL.vector(text).astype(np.float64)
                doc = snapshot.number_of(id_)
                assert doc is not None
                expected = (vector / np.linalg.norm(vector)).astype(np.float16).astype(np.float32)
                np.testing.assert_allclose(snapshot.document_vector(doc), expected, rtol=0, atol=1e-3)
                assert snapshot.document_vector(doc).dtype == np.float32


@pytest.mark.usefixtures("writer")
def test_only_allowed_documents_are_found(path: Path) -> None:
    with IndexReader(path) as reader, reader.snapshot() as snapshot:
        for allowed in ([], [2], [1, 3], [1, 2, 3], [3, 4, 10**6]):
            found, _ = snapshot.search_vectors(MODEL.vector("text"), 10, allowed=BitMap(allowed))
            assert sorted(found.docs.tolist()) == [doc for doc in allowed if doc <= 3]


@pytest.mark.usefixtures("writer")
def test_the_length_of_a_query_does_not_matter(path: Path) -> None:
    query = MODEL.vector("text ball")
    with IndexReader(path) as reader, reader.snapshot() as snapshot:
        first, second = (snapshot.search_vectors(query * np.float32(factor), 10)[0] for factor in (1, 1024))
        assert first.vids.tolist() == second.vids.tolist()
        assert first.scores.tolist() == second.scores.tolist()


@pytest.mark.usefixtures("writer")
def test_a_query_without_direction_is_refused(path: Path) -> None:
    with (
        IndexReader(path) as reader,
        reader.snapshot() as snapshot,
        pytest.raises(InputError, match="it has no direction"),
    ):
        snapshot.search_vectors(np.zeros(16, dtype=np.float32), 10)


def test_info_says_what_the_index_holds(path: Path, writer: IndexWriter) -> None:
    writer.seal()
    writer.remove(["d1"])
    writer.write(entries(documents(4), MODEL))
    with IndexReader(path) as reader:
        info = reader.info()
    assert (info.documents, info.passages, info.entities, info.pending, info.dead) == (3, 3, 3, 1, 1)
    assert (info.format, info.model, info.dimension, info.commit) == (1, "demo", 16, 4)
    assert (info.class_labels, info.entity_types) == (("sport", "science", "music"), ("PER", "ORG", "LOC"))
    assert (info.fingerprint, info.heads_fingerprint) == (MODEL.fingerprint, MODEL.heads_fingerprint)
    (segment,) = info.segments
    assert (segment.name, segment.rows, segment.rerank, segment.factory) == ("0000000002", 3, 0, "SQfp16")
    assert segment.files == tuple(
        SegmentFile(file.name, file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest())
        for file in sorted((path / "segments").iterdir())
    )
    assert info.disk_bytes == sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def test_files_that_vanish_meanwhile_count_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kept").write_bytes(bytes(10))
    gone = tmp_path / "gone"
    gone.write_bytes(bytes(5))

    def vanishing(_: Path) -> bool:
        gone.unlink(missing_ok=True)
        return True

    monkeypatch.setattr(Path, "is_file", vanishing)
    assert folder_bytes(tmp_path) == 10


# Damage and strangers


def test_a_changed_row_is_named(path: Path) -> None:
    build_index(path, documents(1, 2))
    with closing(sqlite3.connect(path / "meta.sqlite", isolation_level=None)) as connection:
        connection.execute("UPDATE documents SET text = 'forged' WHERE id = 'd2'")
    with IndexReader(path) as reader, reader.snapshot() as snapshot:
        assert snapshot.documents([1])[1].id == "d1"
        with pytest.raises(CorruptIndexError, match=r"document 'd2' \(number 2\) does not match its stored digest"):
            snapshot.documents([1, 2])


def test_a_segment_that_has_gone_is_named(path: Path) -> None:
    build_index(path, documents(1), seal=True)
    file = next((path / "segments").glob("*.faiss"))
    file.unlink()
    with (
        IndexReader(path) as reader,
        pytest.raises(
            CorruptIndexError, match=f"{file.name} is named by the index but is not there; run 'indexer verify"
        ),
        reader.snapshot(),
    ):
        pass


def test_a_damaged_pending_vector_is_named_and_the_reader_stays_usable(path: Path) -> None:
    build_index(path, documents(1, 2))
    with (
        closing(sqlite3.connect(path / "meta.sqlite", isolation_level=None)) as connection,
        IndexReader(path) as reader,
    ):
        connection.execute("UPDATE pending SET crc32 = crc32 + 1 WHERE vid = 2")
        for _ in range(2):
            with (
                pytest.raises(CorruptIndexError, match="pending vector 2 does not match its checksum"),
                reader.snapshot(),
            ):
                pass
        connection.execute("UPDATE pending SET crc32 = crc32 - 1 WHERE vid = 2")
        with reader.snapshot() as snapshot:
            assert ids_found(snapshot) == {"d1", "d2"}


def test_a_missing_folder_is_not_an_index(path: Path) -> None:
    with pytest.raises(NotAnIndexError, match="there is no such folder"):
        IndexReader(path)


def test_a_folder_without_a_database_is_not_an_index(path: Path) -> None:
    path.mkdir()
    with pytest.raises(NotAnIndexError, match=r"is not an index: it has no meta\.sqlite"):
        IndexReader(path)
    assert list(path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", r"meta\.sqlite is empty"), (b"junk" * 5000, "is not an index's database: file is not a database")],
)
def test_a_file_that_is_no_database_is_refused(path: Path, content: bytes, message: str) -> None:
    path.mkdir()
    (path / "meta.sqlite").write_bytes(content)
    with pytest.raises(NotAnIndexError, match=message):
        IndexReader(path)


def test_another_program_s_database_is_refused(path: Path) -> None:
    path.mkdir()
    with closing(sqlite3.connect(path / "meta.sqlite", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    with pytest.raises(NotAnIndexError, match="is a SQLite database, but not an index's"):
        IndexReader(path)


@pytest.mark.parametrize(
    ("version", "message"), [(99, "has format 99, this version .* up to 1"), (0, "has the older format 0")]
)
def test_other_formats_are_refused(path: Path, version: int, message: str) -> None:
    build_index(path, documents(1))
    with closing(sqlite3.connect(path / "meta.sqlite", isolation_level=None)) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    with pytest.raises(FormatError, match=message):
        IndexReader(path)


@pytest.mark.usefixtures("writer")
def test_a_reader_cannot_write(path: Path) -> None:
    with (
        IndexReader(path) as reader,
        pytest.raises(CorruptIndexError, match="attempt to write a readonly database"),
        reader.snapshot() as snapshot,
    ):
        snapshot.connection.execute("DELETE FROM documents")


@pytest.mark.parametrize("mode", ["PASSIVE", "FULL", "RESTART", "TRUNCATE"])
def test_a_reader_never_checkpoints_the_log(path: Path, writer: IndexWriter, mode: str) -> None:
    writer.write(entries(documents(4), MODEL))

    def files() -> bytes:
        # Another process looks: opening and closing the file in this one would drop SQLite's locks.
        return subprocess.check_output(["cat", path / "meta.sqlite", path / "meta.sqlite-wal"])

    before = files()
    assert len(before) > (path / "meta.sqlite").stat().st_size
    with IndexReader(path) as reader, reader.snapshot() as snapshot:
        snapshot.connection.execute("COMMIT")
        with suppress(sqlite3.OperationalError):
            snapshot.connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()
        snapshot.connection.execute("BEGIN")
    assert files() == before


def test_the_last_connection_leaves_a_log_alone_if_it_is_a_reader(path: Path) -> None:
    live = path.with_name("live")
    with IndexWriter(live, create=settings_of(MODEL)) as writer:
        writer.write(entries(documents(1, 2), MODEL))
        shutil.copytree(live, path)
    before = {file.name: file.read_bytes() for file in path.glob("meta.sqlite*") if not file.name.endswith("-shm")}
    assert before["meta.sqlite-wal"]
    with IndexReader(path) as reader:
        assert reader.info().documents == 2
    assert {name: (path / name).read_bytes() for name in before} == before


# Folders that cannot be written to

_AS_NOBODY = """
import mmap, os, sys  # mmap for numpy, which imports it when it needs it
from fakes import DemoAnalyser
from indexer.errors import TagdexError
from indexer.reader import IndexReader
query = DemoAnalyser().vector("text")  # before the modules of root's own environment are out of reach
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
try:
    with IndexReader(sys.argv[1]) as reader, reader.snapshot() as snapshot:
        found, _ = snapshot.search_vectors(query, 100)
        print(sorted(snapshot.ids(found.docs.tolist()).values()))
except TagdexError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A place that anybody can read and that only its owner, who is not the one to read it, can write to."""
    place = Path(tempfile.mkdtemp(prefix="tagdex-"))
    yield place / "index"
    for folder in (place, *place.rglob("*")):
        if folder.is_dir():
            folder.chmod(0o755)
    shutil.rmtree(place)


def read_as_nobody(path: Path) -> str:
    path.parent.chmod(0o755)
    for file in (path, *path.rglob("*")):
        file.chmod(0o555 if file.is_dir() else 0o444)
    result = subprocess.run(
        [sys.executable, "-c", _AS_NOBODY, str(path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.strip()


@pytest.mark.parametrize("seal", [False, True])
def test_a_closed_index_on_a_read_only_disk_can_be_searched(read_only: Path, seal: bool) -> None:
    build_index(read_only, documents(1, 2), seal=seal)
    assert read_as_nobody(read_only) == "['d1', 'd2']"


def test_a_read_only_copy_with_changes_in_its_log_is_refused_instead_of_read_without_them(read_only: Path) -> None:
    live = read_only.with_name("live")
    with IndexWriter(live, create=settings_of(MODEL)) as writer:
        writer.write(entries(documents(1, 2), MODEL))
        shutil.copytree(live, read_only, ignore=shutil.ignore_patterns("*-shm"))
    answer = read_as_nobody(read_only)
    assert answer.startswith(f"NotAnIndexError {read_only} cannot be written to, but its last changes are still in")
    assert "meta.sqlite-wal (" in answer


def test_a_read_only_copy_with_its_log_and_shared_memory_is_read_with_its_changes(read_only: Path) -> None:
    live = read_only.with_name("live")
    with IndexWriter(live, create=settings_of(MODEL)) as writer:
        writer.write(entries(documents(1, 2), MODEL))
        shutil.copytree(live, read_only)
    assert read_as_nobody(read_only) == "['d1', 'd2']"


# A file system that is mounted read-only

_MOUNTED = """
mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" || { echo mount; exit 77; }
shift
exec "$@"
"""

_ON_READ_ONLY = """
import contextlib, io, json, sys
from pathlib import Path
from indexer.cli import main as indexer
from search.cli import main as search

answers = []
for line in json.loads(sys.argv[1]):
    sys.argv = line
    out, err = io.TextIOWrapper(io.BytesIO()), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            {"indexer": indexer, "search": search}[line[0]]()
        except SystemExit as ended:
            code = ended.code
    out.flush()
    answers.append([code, out.buffer.getvalue().decode(), err.getvalue()])
print(json.dumps(answers))
"""


def mounted_read_only(folder: Path, commands: list[list[str]]) -> list[tuple[int, str, str]]:
    """What commands say where a folder is on a read-only file system, which nobody, not even root, can write to."""
    python = [sys.executable, "-c", _ON_READ_ONLY, json.dumps(commands)]
    options = ["-m"] if os.getuid() == 0 else ["-r", "-m"]
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("there is no unshare, which a mount of one's own needs")
    script = [unshare, *options, "sh", "-c", _MOUNTED, "sh", str(folder), *python]
    result = subprocess.run(script, capture_output=True, text=True, check=False)
    if result.returncode == 77 or "unshare" in result.stderr:
        pytest.skip(f"mounting is not permitted here: {result.stderr.strip().splitlines()[-1]}")
    assert (result.returncode, result.stderr) == (0, "")
    return [(code, out, err) for code, out, err in json.loads(result.stdout)]


@pytest.mark.parametrize("state", ["closed", "sealed", "open"])
def test_an_index_on_a_read_only_file_system_answers_as_before(tmp_path: Path, state: str) -> None:
    index = tmp_path / "disk" / "index"
    index.parent.mkdir()
    build_index(index, documents(*range(40)), seal=state == "sealed")
    commands = [
        ["search", "similar", str(index), "--id", "d7", "--json"],
        ["search", "similar", str(index), "--id", "d7", "--entity", "PER:Ada", "--where", "n < 5"],
        ["indexer", "info", str(index), "--json"],
        ["indexer", "verify", str(index)],
        ["indexer", "export", str(index), "--vectors"],
        ["indexer", "snapshot", str(index), str(tmp_path / "copy")],
    ]
    with ExitStack() as stack:
        if state == "open":  # elsewhere, where it can be written to: its last changes are in the log
            writer = stack.enter_context(IndexWriter(index))
            writer.write(entries(documents(50, 51), MODEL))
        answers = mounted_read_only(index.parent, commands)
        assert [code for code, _, _ in answers] == [0] * len(commands)
        count = 42 if state == "open" else 40
        assert len(answers[0][1].splitlines()) == 10
        assert json.loads(answers[2][1])["documents"] == len(answers[4][1].splitlines()) == count
        assert answers[3][1] == f"{index}: {count} documents and {count} passages, no fault\n"
    with IndexReader(tmp_path / "copy") as copy:
        assert copy.info().documents == count


def test_what_writes_to_a_read_only_file_system_says_so(tmp_path: Path) -> None:
    index = tmp_path / "disk" / "index"
    index.parent.mkdir()
    build_index(index, documents(1, 2), seal=True)
    commands = [
        ["indexer", "remove", str(index), "d1"],
        ["indexer", "compact", str(index)],
        ["indexer", "snapshot", str(index), str(tmp_path / "disk" / "copy")],
    ]
    for code, out, err in mounted_read_only(index.parent, commands):
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert "Read-only file system" in err
    assert IndexReader(index).info().documents == 2


@pytest.mark.usefixtures("writer")
def test_scores_are_those_of_brute_force(path: Path) -> None:
    texts = {f"d{n}": f"text {n} Ada ball" for n in (1, 2, 3)}
    query = MODEL.vector("Ada")
    with IndexReader(path) as reader, reader.snapshot() as snapshot:
        found, _ = snapshot.search_vectors(query, 3)
        ids = snapshot.ids(found.docs.tolist())
    assert {ids[doc]: score for doc, score in zip(found.docs.tolist(), found.scores.tolist(), strict=True)} == (
        pytest.approx(document_scores(texts, query, MODEL), abs=1e-12)
    )


def test_vectors_that_went_before_a_segment_had_them_are_not_counted_as_dead(tmp_path: Path) -> None:
    path, model = build_index(tmp_path / "index", [Document("kept", "Ada")], seal=True), DemoAnalyser()
    with IndexReader(path) as reader, IndexWriter(path) as writer:
        writer.write(entries([Document("gone", "ball")], model))
        assert reader.info().pending == 1
        writer.remove(["gone"])
        assert (reader.info().pending, reader.info().dead) == (0, 0)
        writer.remove(["kept"])
        assert reader.info().dead == 1
