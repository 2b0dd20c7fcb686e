"""Reranking by a cross-encoder: small random ones, against a direct computation; and models that are none."""

from __future__ import annotations

import json
import random
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Run, assert_fails, write_jsonl
from cross_encoders import pair_tokenizer, save_cross_encoder
from fakes import DemoAnalyser, as_text_model, build_index
from models import byte_bpe, save_raw, wordpiece
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from indexer import model as indexer_model
from indexer.errors import ModelError, QueryError
from indexer.records import Document
from search import Searcher
from search.query import Query
from search.rerank import CrossEncoder

MODEL = DemoAnalyser()
WORDS = ["ada", "met", "acme", "london", "paris", "hello", "zurich", "the", "angstrom", "there"]
CORPUS = [
    Document(f"d{n:02d}", " ".join(WORDS[(n * step + step) % 10] for step in range(1, 4 + n % 6)), {"n": n})
    for n in range(40)
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Cross-encoders by their number of labels."""
    root = tmp_path_factory.mktemp("cross")
    return {labels: save_cross_encoder(root / f"labels{labels}", labels=labels) for labels in (1, 2, 3)}


@pytest.fixture
def searcher(tmp_path: Path) -> Iterator[Searcher]:
    path = build_index(tmp_path / "index", CORPUS, MODEL)
    with Searcher(path, model=as_text_model(MODEL)) as opened:
        yield opened


def direct(folder: Path, query: str, passages: list[str], *, max_length: int = 64) -> list[float]:
    """One pair at a time by transformers' own means."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    scores = []
    for passage in passages:
        inputs = tokenizer([query], [passage], truncation="only_second", max_length=max_length, return_tensors="pt")
        with torch.inference_mode():
            logits = model(**inputs).logits[0].double()
        scores.append(float(torch.sigmoid(logits[0]) if len(logits) == 1 else torch.softmax(logits, dim=0)[1]))
    return scores


# Scores


def test_the_same_passages_have_the_same_score(folders: dict[int, Path]) -> None:
    chance = random.Random(0)
    some = [" ".join(chance.choices(WORDS, k=chance.randint(1, 40))) for _ in range(20)]
    passages = chance.choices(some, k=200)
    scored = CrossEncoder.load(folders[1], device="cpu").score("ada met acme", [*passages, "ada " * 100, "ada " * 100])
    assert scored.truncated == 2
    assert len(set(zip(passages, scored.scores[:200].tolist(), strict=True))) == len(set(passages))


@pytest.mark.parametrize("labels", [1, 2])
@pytest.mark.parametrize("batch_tokens", [1, 64, 1024])
def test_scores_are_those_of_the_model_one_pair_at_a_time(
    folders: dict[int, Path], labels: int, batch_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(indexer_model.BATCH_TOKENS, "cpu", batch_tokens)
    passages = [document.text for document in CORPUS[:12]] + ["", "ada " * 100]
    scored = CrossEncoder.load(folders[labels], device="cpu").score("ada met acme", passages)
    wanted = direct(folders[labels], "ada met acme", passages)
    assert scored.scores == pytest.approx(wanted, abs=1e-5)
    assert max(wanted) - min(wanted) > 0.01
    assert scored.truncated == 1


def test_token_types_are_given_only_where_the_tokenizer_does(tmp_path: Path) -> None:
    with_types = save_cross_encoder(tmp_path / "with")
    without = save_cross_encoder(tmp_path / "without", token_types=False)
    scores = [CrossEncoder.load(folder, device="cpu").score("ada", ["met"]).scores for folder in (with_types, without)]
    assert scores[0] == pytest.approx(direct(with_types, "ada", ["met"]), abs=1e-5)
    assert scores[1] == pytest.approx(direct(without, "ada", ["met"]), abs=1e-5)
    assert abs(scores[0] - scores[1]) > 1e-4


def test_a_model_of_another_family_whose_positions_begin_later(tmp_path: Path) -> None:
    tokenizer = byte_bpe([" ada", " met"])
    torch.manual_seed(3)
    config = RobertaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=34,  # two of them before the first token
        type_vocab_size=1,
        num_labels=1,
        pad_token_id=1,
        initializer_range=0.5,
    )
    RobertaForSequenceClassification(config).save_pretrained(tmp_path / "roberta")
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(tmp_path / "roberta")
    passages = ["met ada", "a", "met" * 20]
    scored = CrossEncoder.load(tmp_path / "roberta", device="cpu").score("ada", passages)
    assert scored.scores == pytest.approx(direct(tmp_path / "roberta", "ada", passages, max_length=32), abs=1e-5)
    assert scored.truncated == 1


def test_no_more_is_read_than_the_tokenizer_says(folders: dict[int, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders[1], tmp_path / "limit")
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"model_max_length": 20}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    encoder = CrossEncoder.load(folder, device="cpu")
    assert encoder.max_tokens == 20
    assert encoder.score("ada", ["met " * 30]).scores == pytest.approx(
        direct(folders[1], "ada", ["met " * 30], max_length=20), abs=1e-5
    )


def test_the_passage_is_cut_and_the_query_never(folders: dict[int, Path]) -> None:
    encoder = CrossEncoder.load(folders[1], device="cpu")
    query = "ada " * 50  # with three special tokens 53 of 64, which leaves 11 for the passage
    scored = encoder.score(query, ["met " * 11, "met " * 12, "met " * 12 + "paris"])
    assert scored.truncated == 2
    assert scored.scores[1] == scored.scores[2]
    assert scored.scores == pytest.approx(direct(folders[1], query, ["met " * 11] * 3), abs=1e-5)
    with pytest.raises(QueryError, match=r"the query takes 57 of the 64 tokens that .* reads at once"):
        encoder.score("ada " * 54, ["met"])


def test_no_passages_have_no_scores(folders: dict[int, Path]) -> None:
    scored = CrossEncoder.load(folders[1], device="cpu").score("ada", [])
    assert (len(scored.scores), scored.truncated) == (0, 0)


def test_a_model_of_no_finite_scores_is_an_error(folders: dict[int, Path]) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(folders[1])
    with torch.no_grad():
        model.classifier.bias.fill_(float("nan"))
    encoder = CrossEncoder(model, pair_tokenizer(), name="broken", device="cpu")
    with pytest.raises(ModelError, match="broken gave a score that is not finite"):
        encoder.score("ada", ["met"])


def test_threads_get_the_same_scores(folders: dict[int, Path]) -> None:
    encoder = CrossEncoder.load(folders[1], device="cpu")
    passages = [document.text for document in CORPUS]
    wanted = encoder.score("ada", passages).scores
    found: list[bool] = []

    def ask() -> None:
        found.extend(bool(np.array_equal(encoder.score("ada", passages).scores, wanted)) for _ in range(5))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 20


# Hits


@pytest.mark.parametrize("mode", ["cosine", "hybrid", "keyword"])
def test_the_best_hits_are_in_the_order_of_the_cross_encoder(
    searcher: Searcher, folders: dict[int, Path], mode: str
) -> None:
    before = searcher.search("ada met acme", k=20, mode=mode)
    scores = direct(folders[1], "ada met acme", [hit.text[hit.passage.start : hit.passage.end] for hit in before])
    hits = searcher.search("ada met acme", k=20, mode=mode, rerank=folders[1], rerank_top=20)
    by_id = {hit.id: (hit.score, score) for hit, score in zip(before, scores, strict=True)}
    assert {hit.id for hit in hits} == by_id.keys()
    assert [hit.id for hit in hits] != [hit.id for hit in before]
    for hit in hits:
        assert hit.score == by_id[hit.id][0]
        assert hit.rerank_score == pytest.approx(by_id[hit.id][1], abs=1e-5)
    order = [(-(hit.rerank_score or 0), hit.id) for hit in hits]
    assert order == sorted(order)
    assert list(hits[0].to_json())[-2:] == ["passage", "rerank_score"]
    assert "rerank_score" not in before[0].to_json()


def test_pages_are_of_one_reranked_list(searcher: Searcher, folders: dict[int, Path]) -> None:
    whole = searcher.search("ada", k=30, rerank=folders[1], rerank_top=30)
    pages = [
        hit
        for offset in range(0, 30, 7)
        for hit in searcher.search("ada", k=min(7, 30 - offset), offset=offset, rerank=folders[1], rerank_top=30)
    ]
    assert pages == whole


def test_equal_scores_are_in_the_order_of_ids(tmp_path: Path, folders: dict[int, Path]) -> None:
    documents = [Document(f"x{n}", "ada met acme") for n in (3, 1, 2)] + CORPUS[:5]
    with Searcher(build_index(tmp_path / "ties", documents, MODEL), model=as_text_model(MODEL)) as searcher:
        hits = searcher.search("paris", rerank=folders[2])
    assert [hit.id for hit in hits if hit.id.startswith("x")] == ["x1", "x2", "x3"]
    assert len({hit.rerank_score for hit in hits if hit.id.startswith("x")}) == 1


def test_filters_and_the_least_score_hold_before(searcher: Searcher, folders: dict[int, Path]) -> None:
    least = searcher.search("ada", k=12, filter="n < 20")[-1].score
    hits = searcher.search("ada", k=20, filter="n < 20", min_score=least, rerank=folders[1])
    assert {hit.id for hit in hits} == {hit.id for hit in searcher.search("ada", k=12, filter="n < 20")}
    assert searcher.search("ada", filter="n < 0", rerank=folders[1]) == []


def test_distinct_hits_are_those_of_the_reranked_list(tmp_path: Path, folders: dict[int, Path]) -> None:
    documents = [*CORPUS[:6], *(Document(f"z{document.id}", document.text) for document in CORPUS[:6])]
    with Searcher(build_index(tmp_path / "twice", documents, MODEL), model=as_text_model(MODEL)) as searcher:
        all_hits = searcher.search("ada", k=12, rerank=folders[1])
        hits = searcher.search("ada", k=6, rerank=folders[1], distinct=1.0)
    first: dict[str, str] = {}
    for hit in all_hits:
        first.setdefault(hit.text, hit.id)
    assert [hit.id for hit in hits] == list(first.values())[:6]
    assert all(hit.hidden for hit in hits)


def test_the_explanation_says_what_was_read_and_how_long_it_took(
    searcher: Searcher, tmp_path: Path, folders: dict[int, Path]
) -> None:
    answer = searcher.answer("ada", Query(k=3, rerank=str(folders[1]), rerank_top=10))
    assert answer.explanation.seconds["rerank"] > 0
    assert answer.explanation.lines()[-2] == f"rerank: {folders[1]} read 10 passages"
    assert answer.explanation.notes == []
    assert answer.explanation.to_json()["reranking"] == {
        "model": str(folders[1]),
        "passages": 10,
        "truncated": 0,
        "max_tokens": 64,
    }
    short = save_cross_encoder(tmp_path / "short", positions=13)
    answer = searcher.answer("ada", Query(k=3, rerank=str(short), rerank_top=40))
    long = sum(len(hit.text.split()) > 9 for hit in searcher.search("ada", k=40))
    assert long == 0  # each word is one token, so eight and four more fit
    documents = [Document("long", " ".join(["acme"] * 8)), Document("spelled", "qqqqqqqqqqqqqqq met")]
    with Searcher(build_index(tmp_path / "long", documents, MODEL), model=as_text_model(MODEL)) as other:
        answer = other.answer("ada", Query(k=2, rerank=str(short)))
    assert answer.explanation.notes == ["rerank: 1 of 2 passages were cut to 13 tokens of both"]
    assert answer.explanation.lines()[-2].endswith("2 passages, 1 of them cut to 13 tokens of query and passage")


# What cannot be asked


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 10, "offset": 45}, "rerank_top is 50, but offset 45 and k 10 reach down to hit 55"),
        ({"rerank_top": 9}, "rerank_top is 9, but offset 0 and k 10 reach down to hit 10"),
        ({"mmr": 0.5}, "rerank and mmr each put hits into an order of their own"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, float], message: str) -> None:
    with pytest.raises(QueryError, match=message):
        Query(rerank="x", **options)  # type: ignore[arg-type]
    Query(**({"k": 1} | {name: value for name, value in options.items() if name != "k"}))  # type: ignore[arg-type]


def test_a_vector_cannot_be_read(searcher: Searcher) -> None:
    with pytest.raises(QueryError, match="a cross-encoder reads the text of a query, got a vector"):
        searcher.answer_vector(np.ones(16, dtype=np.float32), Query(rerank="x"))


# Models that are none


def test_three_classes_are_refused(folders: dict[int, Path]) -> None:
    with pytest.raises(ModelError, match="labels3 tells 3 classes apart; a cross-encoder for reranking has 1 or 2"):
        CrossEncoder.load(folders[3])


def test_an_encoder_without_a_classifier_is_refused(tmp_path: Path) -> None:
    save_raw(tmp_path / "raw", wordpiece())
    with pytest.raises(
        ModelError, match=r"raw is no cross-encoder: .* are missing .*, such as bert\.pooler|classifier"
    ):
        CrossEncoder.load(tmp_path / "raw")


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "a/b/c"])
def test_what_is_not_there_is_named(name: str) -> None:
    with pytest.raises(ModelError, match=f"{re.escape(name)} is not a model folder"):
        CrossEncoder.load(name)


def test_pickled_weights_are_never_loaded(tmp_path: Path) -> None:
    folder = save_cross_encoder(tmp_path / "pickled")
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="pickled cannot be loaded"):
        CrossEncoder.load(folder)


def test_code_of_a_model_is_never_run(tmp_path: Path) -> None:
    folder = save_cross_encoder(tmp_path / "code")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ModelError, match="cannot be loaded"):
        CrossEncoder.load(folder)
    assert not (tmp_path / "ran").exists()


def test_damaged_weights_are_an_error(tmp_path: Path) -> None:
    folder = save_cross_encoder(tmp_path / "damaged")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged"):
        CrossEncoder.load(folder)


def test_a_tokenizer_with_more_words_than_the_model_is_refused(tmp_path: Path) -> None:
    folder = save_cross_encoder(tmp_path / "words")
    wordpiece(extra="äöü").save(str(folder / "tokenizer.json"))
    with pytest.raises(ModelError, match=r"the tokenizer gives ids up to \d+, but the model knows \d+ entries"):
        CrossEncoder.load(folder)


def test_an_adapter_is_refused(tmp_path: Path) -> None:
    folder = save_cross_encoder(tmp_path / "adapter")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="holds an adapter"):
        CrossEncoder.load(folder)


# The command line


def test_the_command_reranks(run: Run, model: str, folders: dict[int, Path]) -> None:
    records = [{"id": document.id, "text": document.text} for document in CORPUS]
    run("indexer", "add", "index", write_jsonl("r.jsonl", records), "--model", model)
    options = ("--rerank", folders[1], "--rerank-top", "20", "-k", "3")
    result = run("search", "query", "index", "ada met", *options, "--json", "--explain")
    with Searcher("index") as searcher:
        hits = searcher.search("ada met", k=3, rerank=folders[1], rerank_top=20)
    assert result.jsons == [json.loads(json.dumps(hit.to_json())) for hit in hits]
    explained = json.loads(result.err)
    assert explained["reranking"]["passages"] == 20
    assert [hit["rerank"] for hit in explained["hits"]] == [hit.rerank_score for hit in hits]
    assert explained["milliseconds"]["rerank"] > 0
    reading = run("search", "query", "index", "ada met", *options, "--explain")
    assert f"rerank: {folders[1]} read 20 passages" in reading.err
    assert re.search(r"^time: .*rerank \d+\.\d ms", reading.err, re.MULTILINE)
    shown = run("search", "query", "index", "ada met", *options)
    first = hits[0]
    assert shown.out.splitlines()[0].startswith(
        f"  1. {first.rerank_score:.4f}  {first.id}  (before reranking {first.score:.4f})"
    )
    assert shown.err == ""
    assert_fails(
        run("search", "query", "index", "ada met", "--rerank", folders[1], "--offset", "45"),
        "rerank_top is 50, but offset 45 and k 10 reach down to hit 55: rerank at least so many, or ask for fewer hits",
    )
