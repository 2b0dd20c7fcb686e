"""Write tests/fixtures/format-N: an index in the format of this version, and the answers that it gave when it was made.

    python scripts/write_format_fixture.py

Run it once for each format that is released, and keep what it wrote: tests/test_format.py holds that later versions
open it and give the same answers. Vectors, classes and entities come from the tests' `DemoAnalyser`; the same versions
of the libraries write the same bytes.
"""

from __future__ import annotations

import io
import json
import lzma
import os
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fakes import DemoAnalyser, entries  # noqa: E402

from indexer.export import export_documents  # noqa: E402
from indexer.metadata import FORMAT  # noqa: E402
from indexer.records import Document  # noqa: E402
from indexer.settings import settings_of  # noqa: E402
from indexer.store import Entry, IndexWriter  # noqa: E402
from search import Searcher  # noqa: E402

FILTERS = (
    None,
    "entity PER:Ada",
    "entity LOC:sa* or label = music",
    "author.name = Zoë and not n in [1, 2, 3]",
    "tags = x and n in 10..60",
)


def build(path: Path, analyser: DemoAnalyser) -> None:
    """An index with everything that a format holds.

    A segment with codes, a segment without them and with removed vectors, pending vectors; documents of one and of
    several passages, replaced, removed and with new metadata; nested metadata; classes and entities.
    """
    words = ("ball", "atom", "song", "Ada", "Kafka", "Rome", "Zed", "Saõ", "河", "🙂")
    documents = [
        Document(
            f"d{n}",
            " ".join(words[(n * k) % len(words)] for k in range(1, 4 + n % 17)) + f" n{n}",
            {
                "n": n,
                "share": n / 7,
                "tags": ["x", n % 3, n % 2 == 0, None],
                "author": {"name": "Zoë" if n % 5 else "Ada", "a.b": {"\\": [{"deep": n}]}},
            },
        )
        for n in range(90)
    ]
    with IndexWriter(path, create=settings_of(analyser)) as writer:
        writer.write(entries(documents[:50], analyser))
        writer.compact(full=True, codes="always")
        writer.compact(codes="auto")
        writer.write(entries(documents[50:80], analyser))
        writer.seal()
        writer.write([Entry(Document(f"d{n}", documents[n].text, {"n": -n}), None) for n in (3, 60)])
        writer.remove(["d5", "d55", "d56"])
        writer.write(entries([Document("d7", "Ada replaced this song", {"n": 7})], analyser))
        writer.write(entries(documents[80:], analyser))
        writer.remove(["d81"])


def answers(path: Path, queries: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """What searches give, each by scanning the vectors and by codes."""
    found = []
    with Searcher(path) as searcher:
        for query in queries:
            for where in FILTERS:
                hits = searcher.search_vector(np.array(query, dtype=np.float32), k=8, filter=where)
                found.append({"filter": where, "hits": [[hit.id, hit.score, hit.passage.start] for hit in hits]})
        found.append({"similar": "d7", "hits": [[hit.id, hit.score] for hit in searcher.similar("d7", k=8)]})
    return found


def packed(folder: Path) -> bytes:
    """A folder as .tar.xz, without times and owners; meta.sqlite is mostly empty pages."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for file in sorted(folder.rglob("*")):
            entry = tarfile.TarInfo(str(file.relative_to(folder.parent)))
            if file.is_dir():
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(entry)
            elif file.name != "LOCK":
                entry.size = file.stat().st_size
                with file.open("rb") as content:
                    tar.addfile(entry, content)
    return lzma.compress(archive.getvalue(), preset=9)


def write(folder: Path) -> None:
    """Make the fixture in a folder."""
    analyser = DemoAnalyser(dimension=32)
    queries = [analyser.vector(text).round(4).tolist() for text in ("Ada ball", "Saõ 河 song", "unknown words")]
    with tempfile.TemporaryDirectory() as place:
        index = Path(place) / "index"
        build(index, analyser)
        facts = {
            "format": FORMAT,
            "documents": list(export_documents(index)),
            "vectors": {
                record["id"]: [[round(float(x), 6) for x in row] for row in record["vectors"]]
                for record in export_documents(index, passage_vectors=True)
                if record["id"] in ("d7", "d33", "d79", "d89")
            },
            "queries": queries,
            "answers": answers(index, queries),
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "index.tar.xz").write_bytes(packed(index))
        lines = (f"{json.dumps(name)}: {_lines(value)}" for name, value in facts.items())
        (folder / "expected.json").write_text("{" + ",\n".join(lines) + "}\n", encoding="utf-8")


def _lines(value: object) -> str:
    """JSON, one line for each item of a list."""
    if not isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    return "[\n" + ",\n".join(json.dumps(item, ensure_ascii=False, separators=(",", ":")) for item in value) + "\n]"


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets shows in the database's pages
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "PYTHONHASHSEED": "0"})
    write(ROOT / "tests" / "fixtures" / f"format-{FORMAT}")
