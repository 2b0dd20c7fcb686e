"""From scored passages to ranked documents, against a plain sort."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.planner import Candidates
from search import ranking
from search.ranking import Ranked, best_passages, in_order, rank_documents


def candidates(*rows: tuple[int, int, float]) -> Candidates:
    """(vid, doc, score), best first."""
    vids, docs, scores = zip(*rows, strict=True) if rows else ((), (), ())
    return Candidates(
        np.array(vids, dtype=np.int64), np.array(docs, dtype=np.int64), np.array(scores, dtype=np.float64)
    )


class Passages:
    """A vector search over fixed passages that notes how many it was asked for."""

    def __init__(self, docs: list[int], scores: list[float]) -> None:
        order = sorted(range(len(docs)), key=lambda at: (-scores[at], at))
        self.rows = [(at + 1, docs[at], scores[at]) for at in order]
        self.asked: list[int] = []

    def __call__(self, n: int) -> Candidates:
        self.asked.append(n)
        return candidates(*self.rows[:n])


def test_a_document_has_the_score_of_its_best_passage() -> None:
    found = candidates((5, 1, 0.9), (2, 2, 0.8), (1, 1, 0.7), (3, 2, 0.6), (4, 3, -0.5))
    assert best_passages(found) == [Ranked(1, 5, 0.9), Ranked(2, 2, 0.8), Ranked(3, 4, -0.5)]


def test_one_document_can_be_left_out() -> None:
    found = candidates((5, 1, 0.9), (2, 2, 0.8), (1, 1, 0.7))
    assert best_passages(found, exclude={1}) == [Ranked(2, 2, 0.8)]
    assert best_passages(found, exclude={99}) == best_passages(found)


def test_no_candidates_are_no_documents() -> None:
    assert best_passages(candidates()) == []
    assert rank_documents(Passages([], []), wanted=10, available=0) == []


def test_the_search_widens_until_enough_documents_are_there() -> None:
    # The first 300 passages all belong to one document.
    find = Passages([1] * 300 + [2, 3], [0.9] * 300 + [0.2, 0.1])
    ranked = rank_documents(find, wanted=3, available=3)
    assert [document.doc for document in ranked] == [1, 2, 3]
    assert find.asked == [16, 64, 256, 1024]


def test_the_search_does_not_widen_without_need() -> None:
    find = Passages(list(range(1000)), [1 - n / 1000 for n in range(1000)])
    ranked = rank_documents(find, wanted=10, available=1000)
    assert [document.doc for document in ranked[:10]] == list(range(10))
    assert find.asked == [20]


def test_the_search_widens_over_ties_with_the_last_that_is_wanted() -> None:
    find = Passages(list(range(300)), [0.5] * 300)
    ranked = rank_documents(find, wanted=10, available=300)
    assert [document.doc for document in ranked] == list(range(300))
    assert find.asked == [20, 80, 320]


def test_scores_within_the_error_of_the_search_count_as_ties() -> None:
    find = Passages(list(range(200)), [0.5 - n * 1e-9 for n in range(200)])
    rank_documents(find, wanted=10, available=200)
    assert find.asked == [20, 80, 320]


def test_more_than_there_are_gives_all_that_are_available() -> None:
    find = Passages([1, 2, 3], [0.3, 0.2, 0.1])
    assert [document.doc for document in rank_documents(find, wanted=50, available=3)] == [1, 2, 3]
    assert find.asked == [16]


@given(
    docs=st.lists(st.integers(0, 12), min_size=1, max_size=120),
    levels=st.lists(st.integers(-3, 3), min_size=120, max_size=120),
    wanted=st.integers(1, 15),
    exclude=st.sets(st.integers(0, 12), max_size=3),
    first=st.sampled_from([1, 2, 64]),
)
def test_the_wanted_documents_are_those_of_a_plain_sort(
    docs: list[int], levels: list[int], wanted: int, exclude: set[int], first: int
) -> None:
    scores = [level / 4 for level in levels[: len(docs)]]
    best = {doc: max(s for d, s in zip(docs, scores, strict=True) if d == doc) for doc in docs if doc not in exclude}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "FIRST_CANDIDATES", first)
        patch.setattr(ranking, "WIDEN", 2)
        ranked = rank_documents(Passages(docs, scores), wanted=wanted, available=len(best), exclude=exclude)
    ids = {doc: f"{doc:03d}" for doc in range(13)}
    ordered = [(document.doc, document.score) for document in in_order(ranked, ids)][:wanted]
    assert ordered == sorted(best.items(), key=lambda item: (-item[1], item[0]))[:wanted]


def test_equal_scores_are_in_the_order_of_their_ids_as_texts() -> None:
    ranked = [Ranked(1, 1, 0.5), Ranked(2, 2, 0.5), Ranked(3, 3, 0.9), Ranked(4, 4, 0.5)]
    ordered = in_order(ranked, {1: "b", 2: "a10", 3: "z", 4: "a9"})
    assert [document.doc for document in ordered] == [3, 2, 4, 1]
