"""The search service: an HTTP API under /v1 for programs, and a page at / for people.

A request's way: `run.py` (uvicorn) → `gate.py` (request id, token, limits, one slot of those under way, time; log and
metrics) → a route in `routes/` (the body as one of `schemas.py`) → `asking.py` (a `Query`, checked against the limits)
→ `batching.py` (texts of several requests through the model at once) → `threads.py` (`Searcher` in a thread) → JSON.
Writing goes through `ingest.py`, which holds an index's lock only while there is something to write. Whatever goes
wrong becomes one of `problems.py`.
"""
