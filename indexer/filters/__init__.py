"""The filter language: text or JSON → a small tree → the documents for which it is true."""

from indexer.filters.ast import (
    MAX_DEPTH,
    MAX_NODES,
    And,
    Between,
    Compare,
    Everything,
    Exists,
    Filter,
    HasEntity,
    HasId,
    HasLabel,
    In,
    Not,
    Or,
    all_of,
    any_of,
)
from indexer.filters.builder import Field, entity, ids, label
from indexer.filters.flags import parse_entity_flag
from indexer.filters.json_form import AnyFilter, as_filter, from_json, to_json
from indexer.filters.matching import DocumentFacts, matches
from indexer.filters.parser import parse
from indexer.filters.printer import format_filter
from indexer.filters.sql import allowed, check_names

__all__ = [
    "MAX_DEPTH",
    "MAX_NODES",
    "And",
    "AnyFilter",
    "Between",
    "Compare",
    "DocumentFacts",
    "Everything",
    "Exists",
    "Field",
    "Filter",
    "HasEntity",
    "HasId",
    "HasLabel",
    "In",
    "Not",
    "Or",
    "all_of",
    "allowed",
    "any_of",
    "as_filter",
    "check_names",
    "entity",
    "format_filter",
    "from_json",
    "ids",
    "label",
    "matches",
    "parse",
    "parse_entity_flag",
    "to_json",
]
