"""Search an index by meaning, class and entity: `from search import Searcher`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search.explain import Answer, Explanation
    from search.facets import Facet, Facets, FacetValue
    from search.hits import BestPassage, Entity, FoundPassage, Highlight, Hit, Stretch
    from search.paging import Page
    from search.query import Query
    from search.searcher import Searcher
    from search.similar import Examples

_HOMES = {
    "Answer": "search.explain",
    "BestPassage": "search.hits",
    "Entity": "search.hits",
    "Examples": "search.similar",
    "Explanation": "search.explain",
    "Facet": "search.facets",
    "FacetValue": "search.facets",
    "Facets": "search.facets",
    "FoundPassage": "search.hits",
    "Highlight": "search.hits",
    "Hit": "search.hits",
    "Page": "search.paging",
    "Query": "search.query",
    "Searcher": "search.searcher",
    "Stretch": "search.hits",
}

__all__ = [
    "Answer",
    "BestPassage",
    "Entity",
    "Examples",
    "Explanation",
    "Facet",
    "FacetValue",
    "Facets",
    "FoundPassage",
    "Highlight",
    "Hit",
    "Page",
    "Query",
    "Searcher",
    "Stretch",
]

if not TYPE_CHECKING:  # else every name that is misspelt would be there, as `Any`

    def __getattr__(name: str) -> Any:
        """Import on first use: torch and faiss take seconds, and `search --help` needs neither."""
        if name in _HOMES:
            return getattr(import_module(_HOMES[name]), name)
        raise AttributeError(f"module 'search' has no attribute {name!r}")


def __dir__() -> list[str]:
    """For tab completion and `help`: what is not imported yet, too."""
    return [*__all__]
