"""Files, folders and standard input as a stream of `Document`s, one at a time.

    for document in read_documents(["docs/", "more.jsonl.gz"]):
        ...

`read.py` tells the story; `files.py` finds and opens files, `lines.py` cuts them into lines, `jsonl.py`,
`delimited.py`, `text.py`, `parquet.py` and `sqlite.py` turn one file each into `Record`s, and `documents.py`
makes a `Document` of a `Record`.
"""

from indexer.readers.files import detect_format
from indexer.readers.options import FORMATS, ReadOptions
from indexer.readers.read import read_documents, total_bytes

__all__ = ["FORMATS", "ReadOptions", "detect_format", "read_documents", "total_bytes"]
