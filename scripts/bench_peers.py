# ruff: noqa: ARG002 - the engines share one signature
"""The engines that bench_search.py compares, each used as its own documentation recommends.

An engine builds from a data set into a folder, opens it, and answers one query at a time with the numbers of vectors.
`levels` are its settings of effort, from fast to exact, where it has such settings. What an engine needs is imported
where it is used: none of the peers is a dependency of tagdex.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from bench_data import Dataset, Floats, Range


class Engine:
    """What every engine has. `levels` are tried one after the other; `None`: there is nothing to set."""

    levels: ClassVar[tuple[Any, ...]] = (None,)

    def build(self, data: Dataset, folder: Path) -> None:
        """Make the index, so that it survives the process where the engine can do that."""
        raise NotImplementedError

    def open(self, data: Dataset, folder: Path) -> None:
        """Get ready to answer."""
        raise NotImplementedError

    def search(self, query: Floats, k: int, where: Range | None, level: Any) -> list[int]:
        """The numbers of the vectors found, best first."""
        raise NotImplementedError


class Tagdex(Engine):
    """This project: given vectors with their texts, classes, entities and two numbers as metadata."""

    levels = ("auto", "scan")

    def build(self, data: Dataset, folder: Path) -> None:
        from indexer import add_documents

        add_documents(folder / "index", documents(data))

    def open(self, data: Dataset, folder: Path) -> None:
        from search import Searcher

        self._searcher = Searcher(folder / "index")

    def search(self, query: Floats, k: int, where: Range | None, level: Any) -> list[int]:
        from indexer.filters import Between
        from search.query import Query

        filter = None if where is None else Between(where.column, where.low, where.high - 1)
        answer = self._searcher.answer_vector(query, Query(k=k, filter=filter), path=level)
        return [int(hit.id) for hit in answer.hits]


def documents(data: Dataset) -> Iterator[Any]:
    """The data set as documents with their vectors."""
    from indexer import Document

    chance, place = (data.columns[name].tolist() for name in ("chance", "place"))
    for start, block in data.blocks():
        for row, vector in enumerate(block, start=start):
            metadata = {"chance": chance[row], "place": place[row]}
            yield Document(id=str(row), text=data.tags[row]["text"], metadata=metadata, vector=vector)


class _Faiss(Engine):
    """A FAISS index; filters are numpy masks, made for each query, in an `IDSelectorBitmap`."""

    def open(self, data: Dataset, folder: Path) -> None:
        import faiss

        self._columns = data.columns
        self._index = faiss.read_index(str(folder / "index.faiss"))

    def _selector(self, where: Range | None) -> dict[str, Any]:
        import faiss

        if where is None:
            return {}
        values = self._columns[where.column]
        mask = (values >= where.low) & (values < where.high)
        return {"sel": faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))}

    def search(self, query: Floats, k: int, where: Range | None, level: Any) -> list[int]:
        _, found = self._index.search(query[None], k, params=self._parameters(where, level))
        return [int(number) for number in found[0] if number >= 0]

    def _parameters(self, where: Range | None, level: Any) -> Any:
        raise NotImplementedError


class FaissFlat(_Faiss):
    """Exact search over fp32 vectors."""

    def build(self, data: Dataset, folder: Path) -> None:
        import faiss

        index = faiss.IndexFlatIP(data.vectors.shape[1])
        for _, block in data.blocks():
            index.add(block)
        faiss.write_index(index, str(folder / "index.faiss"))

    def _parameters(self, where: Range | None, level: Any) -> Any:
        import faiss

        return faiss.SearchParameters(**self._selector(where))


class FaissIvf(_Faiss):
    """Inverted lists of fp16 vectors; 4 √n lists, as FAISS's guidelines say."""

    levels = (4, 16, 64, 256)

    def build(self, data: Dataset, folder: Path) -> None:
        import faiss

        dimension, lists = data.vectors.shape[1], int(4 * len(data) ** 0.5)
        index = faiss.IndexIVFScalarQuantizer(
            faiss.IndexFlatIP(dimension),
            dimension,
            lists,
            faiss.ScalarQuantizer.QT_fp16,
            faiss.METRIC_INNER_PRODUCT,
            False,
        )
        index.cp.niter = 8
        sample = np.sort(np.random.default_rng(1).choice(len(data), size=min(len(data), 40 * lists), replace=False))
        index.train(data.vectors[sample].astype(np.float32))
        for _, block in data.blocks():
            index.add(block)
        faiss.write_index(index, str(folder / "index.faiss"))

    def _parameters(self, where: Range | None, level: Any) -> Any:
        import faiss

        return faiss.SearchParametersIVF(nprobe=level, **self._selector(where))


class Hnswlib(Engine):
    """hnswlib's graph; a filter is a Python function that is called for each vector on the way, on one thread."""

    levels = (50, 200, 800)

    def build(self, data: Dataset, folder: Path) -> None:
        import hnswlib

        index = hnswlib.Index(space="ip", dim=data.vectors.shape[1])
        index.init_index(max_elements=len(data), ef_construction=200, M=16)
        for start, block in data.blocks():
            index.add_items(block, np.arange(start, start + len(block)))
        index.save_index(str(folder / "index.hnsw"))

    def open(self, data: Dataset, folder: Path) -> None:
        import hnswlib

        self._columns = data.columns
        self._index = hnswlib.Index(space="ip", dim=data.vectors.shape[1])
        self._index.load_index(str(folder / "index.hnsw"), max_elements=len(data))
        self._index.set_num_threads(1)  # its documentation: filtering with a Python function works best so

    def search(self, query: Floats, k: int, where: Range | None, level: Any) -> list[int]:
        self._index.set_ef(max(k, level))
        options = {}
        if where is not None:
            values, low, high = self._columns[where.column], where.low, where.high
            options = {"filter": lambda number: bool(low <= values[number] < high)}
        try:
            found, _ = self._index.knn_query(query, k=k, **options)
        except RuntimeError:  # it found fewer than k, and says so in this way
            return []
        return [int(number) for number in found[0]]


class LanceDb(Engine):
    """LanceDB with IVF_PQ, its default, B-trees on both columns, filtering before the search, and refinement."""

    levels = ((20, 10), (50, 20), (200, 50))  # (nprobes, refine_factor)

    def build(self, data: Dataset, folder: Path) -> None:
        import lancedb
        import pyarrow as pa

        dimension = data.vectors.shape[1]
        schema = pa.schema(
            [
                ("id", pa.int64()),
                ("chance", pa.int64()),
                ("place", pa.int64()),
                ("vector", pa.list_(pa.float32(), dimension)),
            ]
        )

        def batches() -> Iterator[pa.RecordBatch]:
            for start, block in data.blocks():
                end = start + len(block)
                vectors = pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), dimension)
                columns = [pa.array(data.columns[name][start:end]) for name in ("chance", "place")]
                yield pa.record_batch([pa.array(np.arange(start, end)), *columns, vectors], schema=schema)

        reader = pa.RecordBatchReader.from_batches(schema, batches())
        table = lancedb.connect(folder / "lance").create_table("vectors", reader, mode="overwrite")
        table.create_index(metric="dot", vector_column_name="vector", index_type="IVF_PQ")
        for name in ("chance", "place"):
            table.create_scalar_index(name)

    def open(self, data: Dataset, folder: Path) -> None:
        import lancedb

        self._table = lancedb.connect(folder / "lance").open_table("vectors")

    def search(self, query: Floats, k: int, where: Range | None, level: Any) -> list[int]:
        probes, refine = level
        request = self._table.search(query, vector_column_name="vector").distance_type("dot")
        request = request.nprobes(probes).refine_factor(refine).limit(k).select(["id"])
        if where is not None:
            condition = f"{where.column} >= {where.low} AND {where.column} < {where.high}"
            request = request.where(condition, prefilter=True)
        return [int(number) for number in request.to_arrow()["id"].to_pylist()]


class Chroma(Engine):
    """Chroma, on disk, with its HNSW index."""

    levels = (100, 400)  # ef_search

    def build(self, data: Dataset, folder: Path) -> None:
        import chromadb

        client = chromadb.PersistentClient(str(folder / "chroma"))
        collection = client.create_collection("vectors", configuration={"hnsw": {"space": "ip"}})
        most = client.get_max_batch_size()
        for start, block in data.blocks():
            for first in range(0, len(block), most):
                rows = range(start + first, start + min(first + most, len(block)))
                collection.add(
                    ids=[str(row) for row in rows],
                    embeddings=block[first : first + most],
                    metadatas=[{name: int(values[row]) for name, values in data.columns.items()} for row in rows],
                )

    def open(self, data: Dataset, folder: Path) -> None:
        import chromadb

        self._collection = chromadb.PersistentClient(str(folder / "chroma")).get_collection("vectors")
        self._level = None

    def search(self, query: Floats, k: int, where: Range | None, level: Any) -> list[int]:
        if level != self._level:
            self._collection.modify(configuration={"hnsw": {"ef_search": level}})
            self._level = level
        condition = None
        if where is not None:
            condition = {"$and": [{where.column: {"$gte": where.low}}, {where.column: {"$lt": where.high}}]}
        found = self._collection.query(query_embeddings=[query], n_results=k, where=condition, include=[])
        return [int(number) for number in found["ids"][0]]


class QdrantLocal(Engine):
    """qdrant-client's local mode, in memory: exact, in numpy; meant for trying out, says its documentation."""

    def build(self, data: Dataset, folder: Path) -> None:
        """It is filled again whenever it is opened."""

    def open(self, data: Dataset, folder: Path) -> None:
        from qdrant_client import QdrantClient, models

        self._client, self._models = QdrantClient(":memory:"), models
        size = data.vectors.shape[1]
        self._client.create_collection(
            "vectors", vectors_config=models.VectorParams(size=size, distance=models.Distance.DOT)
        )
        for start, block in data.blocks():
            rows = list(range(start, start + len(block)))
            payloads = [{name: int(values[row]) for name, values in data.columns.items()} for row in rows]
            self._client.upsert("vectors", models.Batch(ids=rows, vectors=block.tolist(), payloads=payloads))

    def search(self, query: Floats, k: int, where: Range | None, level: Any) -> list[int]:
        models, condition = self._models, None
        if where is not None:
            between = models.Range(gte=where.low, lt=where.high)
            condition = models.Filter(must=[models.FieldCondition(key=where.column, range=between)])
        found = self._client.query_points("vectors", query=query.tolist(), query_filter=condition, limit=k)
        return [int(point.id) for point in found.points]


class SqliteVec(Engine):
    """sqlite-vec's vec0 table, exact, with the two numbers as metadata columns."""

    def build(self, data: Dataset, folder: Path) -> None:
        connection = self._connect(folder)
        dimension = data.vectors.shape[1]
        connection.execute(
            f"CREATE VIRTUAL TABLE vectors USING vec0(embedding float[{dimension}] distance_metric=cosine,"
            " chance integer, place integer)"
        )
        for start, block in data.blocks():
            rows = range(start, start + len(block))
            columns = [[int(value) for value in data.columns[name][rows]] for name in ("chance", "place")]
            with connection:
                connection.executemany(
                    "INSERT INTO vectors (rowid, embedding, chance, place) VALUES (?, ?, ?, ?)",
                    zip(rows, (vector.tobytes() for vector in block), *columns, strict=True),
                )
        connection.close()

    def open(self, data: Dataset, folder: Path) -> None:
        self._connection = self._connect(folder)

    def search(self, query: Floats, k: int, where: Range | None, level: Any) -> list[int]:
        condition, values = "", ()
        if where is not None:
            condition = f" AND {where.column} >= ? AND {where.column} < ?"
            values = (where.low, where.high)
        rows = self._connection.execute(
            f"SELECT rowid FROM vectors WHERE embedding MATCH ? AND k = ?{condition}", (query.tobytes(), k, *values)
        )
        return [number for (number,) in rows]

    def _connect(self, folder: Path) -> Any:
        import apsw  # Python's own sqlite3 can often not load extensions
        import sqlite_vec

        connection = apsw.Connection(str(folder / "vectors.db"))
        connection.enable_load_extension(True)
        connection.load_extension(sqlite_vec.loadable_path())
        connection.enable_load_extension(False)
        return connection


class Txtai(Engine):
    """txtai with content; it searches the vectors first and then filters: the levels are how many it filters."""

    levels = (1_000, 10_000)

    def build(self, data: Dataset, folder: Path) -> None:
        from txtai import Embeddings

        self._data = data
        embeddings = Embeddings(
            {
                "method": "external",
                "transform": self._transform(),
                "content": True,
                "backend": "faiss",
                "format": "json",
            }
        )
        embeddings.index(
            (row, {"text": f"v{row}", **{name: int(values[row]) for name, values in data.columns.items()}}, None)
            for row in range(len(data))
        )
        embeddings.save(str(folder / "txtai"))

    def open(self, data: Dataset, folder: Path) -> None:
        from txtai import Embeddings

        self._data, self._query = data, np.zeros(0, dtype=np.float32)
        self._embeddings = Embeddings()
        self._embeddings.load(str(folder / "txtai"), config={"transform": self._transform()})

    def search(self, query: Floats, k: int, where: Range | None, level: Any) -> list[int]:
        self._query = query
        condition = ""
        if where is not None:
            condition = f" AND {where.column} >= {where.low} AND {where.column} < {where.high}"
        found = self._embeddings.search(
            f"SELECT id FROM txtai WHERE similar('query', {level}){condition} LIMIT {k}", limit=k
        )
        return [int(row["id"]) for row in found]

    def _transform(self) -> Any:
        return lambda texts: self._vectors(texts)  # txtai calls nothing but plain functions

    def _vectors(self, texts: list[Any]) -> Floats:
        names = [text["text"] if isinstance(text, dict) else text for text in texts]
        return np.stack(
            [self._query if name == "query" else self._data.vectors[int(name[1:])].astype(np.float32) for name in names]
        )


ENGINES: dict[str, type[Engine]] = {
    "tagdex": Tagdex,
    "faiss-flat": FaissFlat,
    "faiss-ivf": FaissIvf,
    "hnswlib": Hnswlib,
    "lancedb": LanceDb,
    "chroma": Chroma,
    "qdrant-local": QdrantLocal,
    "sqlite-vec": SqliteVec,
    "txtai": Txtai,
}


def versions() -> str:
    """The versions of the packages that are there, as JSON."""
    from importlib.metadata import PackageNotFoundError, version

    names = ("tagdex", "faiss-cpu", "hnswlib", "lancedb", "chromadb", "qdrant-client", "sqlite-vec", "txtai")
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return json.dumps(found)
