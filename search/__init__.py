"""Search an index by meaning, class and entity: `from search import Searcher`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search.facets import Facet, Facets, FacetValue
    from search.hits import Entity, FoundPassage, Highlight, Hit
    from search.paging import Page
    from search.searcher import Searcher
    from search.similar import Examples

__all__ = [
    "Entity",
    "Examples",
    "Facet",
    "FacetValue",
    "Facets",
    "FoundPassage",
    "Highlight",
    "Hit",
    "Page",
    "Searcher",
]


def __getattr__(name: str) -> Any:
    """Import on first use: torch and faiss take seconds, and `search --help` needs neither."""
    if name == "Searcher":
        from search.searcher import Searcher

        return Searcher
    if name in ("Hit", "Entity", "FoundPassage", "Highlight"):
        from search import hits

        return getattr(hits, name)
    if name in ("Facet", "FacetValue", "Facets"):
        from search import facets

        return getattr(facets, name)
    if name == "Page":
        from search.paging import Page

        return Page
    if name == "Examples":
        from search.similar import Examples

        return Examples
    raise AttributeError(f"module 'search' has no attribute {name!r}")
