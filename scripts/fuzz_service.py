"""Generated requests against the service's own OpenAPI document: answers must match it, and none may be a server error.

python scripts/fuzz_service.py --cases 10000

Makes an index of its own, serves it in this process, and lets schemathesis generate requests, valid and not, for each
operation. Prints what was sent by status; exits with 1 at the first answer that is not as documented.
"""

from __future__ import annotations

import argparse
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


def fuzz(url: str, schema: dict[str, Any], *, cases: int, seed: int) -> Counter[tuple[str, int]]:
    """Send about so many requests to a service, the same number for each operation; how they were answered."""
    loaded = schemathesis.openapi.from_dict(schema)
    operations = [result.ok() for result in loaded.get_all_operations()]
    answered: Counter[tuple[str, int]] = Counter()
    for operation in operations:

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=-(-cases // (2 * len(operations))),
            database=None,
            deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
            phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
        )
        @hypothesis.given(data=hypothesis.strategies.data())
        def send(data: Any, operation: Any = operation) -> None:
            for mode in schemathesis.GenerationMode:
                try:
                    strategy = operation.as_strategy(generation_mode=mode)
                    case = data.draw(strategy)
                except (hypothesis.errors.Unsatisfiable, hypothesis.errors.UnsatisfiedAssumption):
                    continue
                response = case.call(base_url=url)
                answered[operation.label, response.status_code] += 1
                case.validate_response(response, checks=CHECKS)

        send()
    return answered


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
