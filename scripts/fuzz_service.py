"""Generated requests against the service's own OpenAPI document: answers must match it, and none may be a server error.

python scripts/fuzz_service.py --cases 10000

Makes an index of its own, serves it in this process, and lets schemathesis generate requests, valid and not, for each
operation: half of them by the document as it is, half with names that the index has.
Prints what was sent by status; exits with 1 at the first answer that is not as documented.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import hypothesis
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / part) for part in (".", "tests")]

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


def aimed(schema: dict[str, Any]) -> dict[str, Any]:
    """The document with names that the index has in place of any, so that requests get further than the first check."""
    narrowed: dict[str, Any] = copy.deepcopy(schema)
    schemas = narrowed["components"]["schemas"]
    for form in schemas.values():
        if "index" in form.get("properties", {}) and "additionalProperties" in form:
            form["properties"]["index"] = {"enum": ["demo", None]}
    search = schemas["SearchRequest"]
    del search["properties"]["vector"]
    search["required"] = ["query"]
    search["properties"]["query"] = {"type": "string", "pattern": "^[a-z]+( [A-Za-z]+)*$", "maxLength": 200}
    search["properties"]["k"]["maximum"] = 50
    search["properties"]["offset"]["maximum"] = 50
    for form in ("SimilarRequest", "FacetsRequest", "WantedFacets"):
        properties = schemas[form]["properties"]
        properties.pop("vector", None)
        for name in ("ids", "not_ids"):
            if name in properties:
                properties[name]["items"] = {"enum": ["steel", "boat", "song", "ball", "atom"]}
        for name in ("top", "of"):
            if name in properties:
                properties[name]["maximum"] = 50
        if "names" in properties:
            properties["names"]["items"] = {"enum": ["label", "entity", "entity:ORG", "year", "author.name", "tags"]}
    schemas["EmbeddingsRequest"]["properties"]["model"] = {"const": "demo"}
    schemas["DocumentIn"]["properties"].pop("vector")
    forms = [form for form in schemas["Filter"]["oneOf"] if "label" not in form.get("required", ())]
    text = {"enum": ["year >= 2020", "not entity ORG:nordal or year = 2019", "exists author.name"]}
    schemas["Filter"]["oneOf"] = [text if form.get("type") == "string" else form for form in forms]
    for path in narrowed["paths"].values():
        for operation in path.values():
            for parameter in operation.get("parameters", ()):
                if parameter["name"] == "index":
                    parameter["schema"] = {"const": "demo"}
                if parameter["name"] == "id":
                    parameter["schema"] = {"enum": ["steel", "boat", "song", "ball", "atom", "nope"]}
    return narrowed


def fuzz(url: str, schema: dict[str, Any], *, cases: int, seed: int) -> Counter[tuple[str, int]]:
    """Send about so many requests to a service, the same number for each operation; how they were answered."""
    operations = [
        result.ok()
        for document in (schema, aimed(schema))
        for result in schemathesis.openapi.from_dict(document).get_all_operations()
    ]
    answered: Counter[tuple[str, int]] = Counter()
    examples = -(-cases // (2 * len(operations)))
    for operation in operations:
        fuzz_operation(url, operation, answered, examples=examples, seed=seed)
    return answered


def fuzz_operation(url: str, operation: Any, answered: Counter[tuple[str, int]], *, examples: int, seed: int) -> None:
    """Send requests to one operation, as many that follow its schema as ones that do not."""

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    @hypothesis.given(data=hypothesis.strategies.data())
    def send(data: Any) -> None:
        for mode in schemathesis.GenerationMode:
            try:
                case = data.draw(operation.as_strategy(generation_mode=mode))
            except (hypothesis.errors.Unsatisfiable, hypothesis.errors.UnsatisfiedAssumption):
                continue  # nothing can be wrong with this operation's parameters
            response = case.call(base_url=url)
            answered[operation.label, response.status_code] += 1
            case.validate_response(response, checks=CHECKS)

    send()


def main() -> None:
    """The command."""
    from serving import demo_service, listening

    from search.server.app import routes_of

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        service = demo_service(Path(folder))
        schema = routes_of(service).openapi()
        started = time.perf_counter()
        with listening(service) as url:
            answered = fuzz(url, schema, cases=arguments.cases, seed=arguments.seed)
        seconds = time.perf_counter() - started
    for (operation, status), count in sorted(answered.items()):
        print(f"{operation:32} {status} {count:>6,}")
    total, errors = sum(answered.values()), sum(n for (_, status), n in answered.items() if status >= 500)
    print(f"{total:,} requests in {seconds:.0f} s, {errors} server errors; all answers as documented")


if __name__ == "__main__":
    main()
