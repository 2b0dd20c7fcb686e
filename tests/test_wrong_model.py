"""An index and a model that did not make it: refused by every command, with both named, and nothing is changed."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Run, assert_fails, write_jsonl
from models import WORDS, multi_task, wordpiece

from indexer.api import add_documents
from indexer.checkpoint import Loaded, attach, save_checkpoint
from indexer.model import TextModel
from indexer.records import Document

TEXTS = ("Ada met Bob in London", "hello there, café Ångström", "the acme race")


def nudged() -> Loaded:
    """The model with one weight of its backbone changed in the last bit."""
    loaded = multi_task()
    with torch.no_grad():
        bias = loaded.model.backbone.encoder.layer[1].output.dense.bias
        bias[0] = torch.nextafter(bias[0], torch.tensor(1.0))
    return attach(loaded.model, loaded.tokenizer, name="nudged")


OTHERS: dict[str, Callable[[], Loaded]] = {
    "weights": lambda: multi_task(seed=1),
    "one weight": nudged,
    "pooled layers": lambda: multi_task(pool_layers=[-1, -2, -4, -3]),
    "layer weights": lambda: multi_task(layer_weights=[1.0, 1.0, 0.5, 1.0]),
    "normalised layers": lambda: multi_task(normalize_layers=True),
    "dimension by layers": lambda: multi_task(pool_layers=[-1, -2]),
    "dimension by width": lambda: multi_task(encoder={"hidden_size": 16}),
    "words of the tokenizer": lambda: multi_task(wordpiece([*WORDS[1:], "berlin"])),
    "case of the tokenizer": lambda: multi_task(wordpiece(strip_accents=False)),
    "prefix": lambda: multi_task(prefix="query: "),
    "window": lambda: multi_task(max_length=96),
    "family": lambda: multi_task(family="distilbert"),
}


def saved(loaded: Loaded, folder: Path) -> Path:
    save_checkpoint(loaded, folder)
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and an index that it made."""
    place = tmp_path_factory.mktemp("built")
    documents = [Document(f"d{n}", text, {"n": n}) for n, text in enumerate(TEXTS)]
    add_documents(place / "index", documents, model=saved(multi_task(), place / "model"))
    return place


@pytest.fixture
def index(built: Path, run: Run, tmp_path: Path) -> str:
    """A copy of the index in the current folder, as `index`. Its model is where it was."""
    del run  # which changes to that folder
    shutil.copytree(built / "index", tmp_path / "index")
    write_jsonl("new.jsonl", [{"id": "new", "text": "a new text"}, {"id": "d0", "text": TEXTS[0], "n": 7}])
    return "index"


def everything(index: str) -> list[str]:
    """All that the index holds, as SQL."""
    with closing(sqlite3.connect(f"file:{index}/meta.sqlite?mode=ro", uri=True)) as connection:
        return list(connection.iterdump())


def commands(index: str, model: str) -> list[list[str]]:
    """Every command that takes an index and a model."""
    return [
        ["indexer", "add", index, "new.jsonl", "--model", model],
        ["indexer", "add", index, "new.jsonl", "--vectors", "new.npy", "--model", model],
        ["indexer", "retag", index, "--model", model],
        ["search", "query", index, "Ada", "--model", model],
        ["search", "query", index, "Ada", "--entity", "PER", "--model", model],
    ]


def named(name: object, model: TextModel) -> str:
    return f"{name} (fingerprint {model.fingerprint[:12]}, {model.dimension} dimensions)"


@pytest.mark.parametrize("way", OTHERS)
def test_another_model_is_refused_by_every_command_with_both_named(
    run: Run, built: Path, index: str, tmp_path: Path, way: str
) -> None:
    other = saved(OTHERS[way](), tmp_path / "other")
    right, wrong = TextModel.load(built / "model"), TextModel.load(other)
    np.save("new.npy", np.ones((2, wrong.dimension), dtype=np.float32))
    before, message = (
        everything(index),
        (
            f"index was built with model {named(built / 'model', right)}, got {named(other, wrong)}: "
            f"pass --model {built / 'model'}, or build a new index"
        ),
    )
    for command in commands(index, "other"):
        assert_fails(run(*command), message)
    assert everything(index) == before


def test_a_model_that_was_replaced_in_its_place_is_refused(run: Run, tmp_path: Path) -> None:
    """The index remembers the place of its model; the model that is there now is another."""
    model = saved(multi_task(), tmp_path / "model")
    right = TextModel.load(model)
    add_documents(tmp_path / "index", [Document("d0", TEXTS[0])], model=model)
    write_jsonl("new.jsonl", [{"id": "new", "text": "a new text"}])
    before = everything("index")
    shutil.rmtree(model)
    wrong = TextModel.load(saved(multi_task(seed=1), model))
    message = f"index was built with model {named(model, right)}, got {named(model, wrong)}: "
    for command in (
        ["indexer", "add", "index", "new.jsonl"],
        ["indexer", "retag", "index"],
        ["search", "query", "index", "Ada"],
    ):
        result = run(*command)
        assert (result.code, result.out) == (1, "")
        assert result.err.startswith(f"Error: {message}")
    assert everything("index") == before


def test_the_same_model_in_another_place_is_taken(run: Run, built: Path, index: str) -> None:
    shutil.copytree(built / "model", "moved")
    assert run("indexer", "add", index, "new.jsonl", "--model", "moved").out.startswith(
        "index: 1 document added, 1 with new metadata"
    )
    assert run("search", "query", index, "Ada", "-k", "1", "--json", "--model", "moved").jsons[0]["id"]
    assert run("indexer", "retag", index, "--model", "moved").out == "index: 4 documents tagged again\n"


def test_what_needs_no_model_asks_for_none(run: Run, tmp_path: Path) -> None:
    model = saved(multi_task(), tmp_path / "model")
    add_documents(tmp_path / "index", [Document(f"d{n}", text) for n, text in enumerate(TEXTS)], model=model)
    shutil.rmtree(model)
    similar = run("search", "similar", "index", "--id", "d0", "--json")
    assert (similar.code, sorted(hit["id"] for hit in similar.jsons)) == (0, ["d1", "d2"])
    for command in ("info", "verify", "compact", "export"):
        assert run("indexer", command, "index").code == 0
