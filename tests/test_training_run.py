"""What a training run guarantees: resumed bit for bit, heads of their own, frozen backbones untouched."""

from __future__ import annotations

import copy
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import tiny
from safetensors.torch import load_file
from training import CLASSES, PAIRS, SCORES, SPANS, WORDS, configure, raw, save, with_both_heads, write_data

from indexer.checkpoint import load_checkpoint, with_heads
from indexer.errors import LockedError
from indexer.model import TextModel
from indexer.training.keys import ConfigError
from indexer.training.loop import train
from indexer.training.runs import RunFolder
from indexer.training.sets import read_set
from indexer.training.settings import TrainConfig, read_config
from indexer.training.start import start_model
from indexer.training.step import rate_factor

TEXTS = ["hello there london", "ada met paris in the zurich", "acme"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_data(tmp_path)
    return tmp_path


def weights(config: TrainConfig) -> dict[str, torch.Tensor]:
    return load_file(Path(config.output) / "model" / "model.safetensors")


def assert_same(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


class Stop:
    """Stops a run when it has logged this many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "step":
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt


BOTH = ({"train": "heads", "epochs": 2, "learning_rate": 1e-2}, {"train": "all", "epochs": {"class": 1, "tags": 2}})


def test_a_log_that_a_power_cut_has_left_in_parts_can_be_read(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", config="c", data="d") as run:
        for step in range(3):
            run.log({"event": "step", "step": step})
        log = tmp_path / "run" / "log.jsonl"
        log.write_bytes(log.read_bytes()[:-5])
        assert [event["step"] for event in run.events()] == [0, 1]


@pytest.mark.parametrize("stops", [(3,), (10, 3)], ids=str)
def test_a_stopped_run_ends_with_the_same_bits_and_the_same_log(folder: Path, stops: tuple[int, ...]) -> None:
    whole, stopped = (
        configure(folder, name, [CLASSES, SPANS], *BOTH, checkpoint_every=2, distill={"weight": 0.1})
        for name in ("whole", "stopped")
    )
    train(whole, base=raw())
    for steps in stops:
        with pytest.raises(KeyboardInterrupt):
            train(stopped, base=raw(), watch=Stop(steps))
    train(stopped, base=raw())
    assert_same(weights(whole), weights(stopped))
    for name in ("log.jsonl", "scores.json", "model/config.json"):
        assert (Path(whole.output) / name).read_bytes() == (Path(stopped.output) / name).read_bytes()


_KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[3])
from indexer.training.loop import train
from indexer.training.settings import read_config
steps = 0
def watch(event):
    global steps
    steps += event["event"] == "step"
    if steps == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
train(read_config(sys.argv[1]), watch=watch)
"""


def test_a_killed_process_is_resumed_bit_for_bit(folder: Path) -> None:
    base = save(raw(), folder / "base")
    text = f"""
checkpoint_every = 3
[model]
base = "{base}"
[[data]]
task = "class"
path = "classes.csv"
dev = 0.2
[[phase]]
epochs = 2
batch_size = 8
learning_rate = 1e-3
"""
    (folder / "killed.toml").write_text(f'output = "{folder}/killed"\n{text}')
    (folder / "whole.toml").write_text(f'output = "{folder}/whole"\n{text}')
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    script = [sys.executable, "-c", _KILLED]
    tests = str(Path(__file__).parent)
    killed = subprocess.run([*script, str(folder / "killed.toml"), "5", tests], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (folder / "killed" / "model").exists()
    for name in ("killed", "whole"):
        train(read_config(folder / f"{name}.toml"))
    assert_same(
        load_file(folder / "killed/model/model.safetensors"), load_file(folder / "whole/model/model.safetensors")
    )


def test_one_head_trained_alone_leaves_embeddings_and_the_other_head_as_they_were(folder: Path) -> None:
    base = with_both_heads()
    before = TextModel(copy.deepcopy(base), device="cpu")
    phase = {"train": "heads", "epochs": 2, "learning_rate": 1e-2}
    config = configure(folder, "run", [SPANS], phase, early_stopping={"keep": "last"})
    train(config, base=base)
    after = TextModel.load(Path(config.output) / "model", device="cpu")
    assert after.fingerprint == before.fingerprint
    assert after.heads_fingerprint != before.heads_fingerprint
    assert np.array_equal(after.encode(TEXTS), before.encode(TEXTS))
    ids, mask = before.tensors(TEXTS)
    with torch.inference_mode():
        assert torch.equal(after.model(ids, mask).class_logits, before.model(ids, mask).class_logits)
        assert not torch.equal(after.model(ids, mask).tag_logits, before.model(ids, mask).tag_logits)


def test_a_frozen_head_keeps_its_weights_while_the_backbone_learns(folder: Path) -> None:
    base = with_both_heads()
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    data = [{**CLASSES, "dev": 0.1}, {**SPANS, "dev": 0.1}]
    config = configure(
        folder,
        "run",
        data,
        {"train": "all", "epochs": 1, "freeze_heads": ["class"]},
        early_stopping={"keep": "last"},
        model={"calibrate": False},
    )
    train(config, base=base)
    after = weights(config)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(name.startswith("class_head.") for name in changed)
    assert {name.split(".")[0] for name in changed} == {"backbone", "tag_head"}


def test_a_head_for_new_labels_takes_the_place_of_the_old_one(folder: Path) -> None:
    base = with_both_heads()
    tags = {n: t.clone() for n, t in base.model.state_dict().items() if n.startswith("tag_head.")}
    (folder / "classes.csv").write_text("text,label\nhello,a\nlondon,b\nada,c\nthere,a\n")
    config = configure(folder, "run", [{**CLASSES, "dev": 0.25}], {"train": "heads", "epochs": 1})
    result = train(config, base=base)
    assert result.report is not None
    assert "in place of the base's 2" in result.report.heads["class"]
    model = TextModel.load(result.folder)
    assert set(model.class_labels or ()) <= {"a", "b", "c"}
    assert model.entity_types == ("LOC", "PER")
    assert_same(tags, {n: t for n, t in weights(config).items() if n.startswith("tag_head.")})


def test_a_head_that_knows_the_labels_is_trained_on(folder: Path) -> None:
    base = with_both_heads()
    config = configure(folder, "run", [CLASSES], {"train": "heads", "epochs": 1, "learning_rate": 1e-12})
    result = train(config, base=base)
    assert torch.allclose(weights(config)["class_head.linear.weight"], base.model.class_head.linear.weight)
    assert result.report is not None
    assert result.report.heads["class"] == "the base's, 2 labels"


@pytest.mark.parametrize("data", [SPANS, CLASSES], ids=["tags", "class"])
def test_a_pooled_class_head_that_is_kept_keeps_its_layers(folder: Path, data: dict[str, Any]) -> None:
    phase = {"train": "heads", "epochs": 1}
    pooled = configure(folder, "pooled", [CLASSES], phase, model={"class_head": "pooled"})
    base = load_checkpoint(train(pooled, base=raw()).folder)
    for layers in ([-1], [-4, -3, -2, -1]):
        message = rf"pool_layers = \[{layers[0]}.*trained on the means of the layers \[-1, -2.*new_heads = \['class'\]"
        with pytest.raises(ConfigError, match=message):
            train(configure(folder, f"of {len(layers)}", [data], phase, model={"pool_layers": layers}), base=base)
    renamed = {"pool_layers": [4, 3, 2, 1], "layer_weights": [1.0, 0.5, 0.5, 0.5], "normalize_layers": True}
    kept = train(configure(folder, "same", [data], phase, model=renamed), base=base)
    assert load_checkpoint(kept.folder).model.class_head is not None
    new = {"pool_layers": [-1], "new_heads": ["class"], "class_head": "pooled"}
    trained = train(configure(folder, "new", [CLASSES], phase, model=new), base=base)
    assert TextModel.load(trained.folder).dimension == base.model.width


@pytest.mark.parametrize("data", [CLASSES, SPANS], ids=["class", "tags"])
def test_a_dev_set_without_its_head_is_refused(folder: Path, data: dict[str, Any]) -> None:
    task = data["task"]
    measured = {"task": task, "name": "measured", "dev": data["path"]}
    config = configure(folder, "run", [SCORES, measured], {"train": "all", "epochs": 1})
    with pytest.raises(ConfigError, match=f"'measured' is only measured on, but the model has no head for {task}"):
        train(config, base=raw())


def test_top_layers_train_and_the_others_stay(folder: Path) -> None:
    base = raw()
    config = configure(folder, "run", [CLASSES], {"train": "top:2", "epochs": 1}, early_stopping={"keep": "last"})
    train(config, base=base)
    after = weights(config)
    changed = {n for n, t in base.model.state_dict().items() if not torch.equal(t, after[n])}
    assert {name.split(".")[3] for name in changed} == {"2", "3"}


def test_too_many_top_layers_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"train = 'top:9': the backbone has 4 layers"):
        train(configure(folder, "run", [CLASSES], {"train": "top:9"}), base=raw())


@pytest.mark.parametrize("strategy", ["balanced", "temperature"])
def test_all_three_tasks_learn_together(folder: Path, strategy: str) -> None:
    config = configure(
        folder,
        "run",
        [CLASSES, SPANS, SCORES, PAIRS],
        {"train": "all", "epochs": 4, "accumulate": 2, "layer_decay": 0.9, "head_learning_rate": 1e-2},
        mix={"strategy": strategy},
        matryoshka={"dimensions": [32]},
    )
    events: list[Mapping[str, Any]] = []
    result = train(config, base=raw(), watch=events.append)
    names = {name for event in events if event["event"] == "step" for name in event["losses"]}
    assert names == {"classes (class)", "spans (tags)", "scores (similarity)", "pairs (similarity)"}
    for name in ("classes (class)", "spans (tags)"):
        losses = [e["losses"][name] for e in events if e["event"] == "step" and name in e["losses"]]
        assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])
    assert (Path(config.output) / "curves.svg").read_text().startswith("<svg")
    for text in ("hello there", "ada met paris"):
        assert np.isfinite(TextModel.load(result.folder).encode([text])).all()


def test_the_guard_keeps_what_similarity_was(folder: Path) -> None:
    # This random model's similarities are as they should be to .90; a rate that is far too high spoils them.
    phase = {"train": "all", "epochs": 2, "learning_rate": 0.5}
    config = configure(folder, "run", [CLASSES, SCORES], phase, guard={"max_drop": 0.0})
    events: list[Mapping[str, Any]] = []
    result = train(config, base=tiny(seed=2), watch=events.append)
    scores = [event for event in events if event["event"] == "scores"]
    floor = scores[0]["sets"]["scores (similarity)"]
    assert any(event["refused"] for event in scores)
    assert result.scores["scores (similarity)"] >= floor


def test_distillation_is_part_of_the_batches_of_its_tasks_only(folder: Path) -> None:
    config = configure(
        folder, "kept", [CLASSES, SPANS], {"train": "all", "epochs": 1}, distill={"weight": 0.1, "tasks": ["tags"]}
    )
    train(config, base=raw())
    events = [json.loads(line) for line in (Path(config.output) / "log.jsonl").read_text().splitlines()]
    parts = [set(event["losses"]) for event in events if event["event"] == "step"]
    assert {tuple(sorted(part)) for part in parts} == {("classes (class)",), ("distill", "spans (tags)")}


def test_early_stopping_ends_a_phase(folder: Path) -> None:
    phase = {"train": "heads", "epochs": 50, "learning_rate": 1e-9}
    config = configure(folder, "run", [CLASSES], phase, early_stopping={"patience": 2})
    events: list[Mapping[str, Any]] = []
    train(config, base=with_both_heads(), watch=events.append)
    scores = [event for event in events if event["event"] == "scores"]
    assert len(scores) == 3
    assert scores[-1]["step"] < scores[-1]["of"]


def test_the_best_weights_are_kept(folder: Path) -> None:
    config = configure(folder, "run", [CLASSES], {"train": "heads", "epochs": 8, "learning_rate": 0.3})
    events: list[Mapping[str, Any]] = []
    result = train(config, base=raw(), watch=events.append)
    best = max(event["mean"] for event in events if event["event"] == "scores")
    assert result.scores["classes (class)"] == best


def test_random_weights_of_a_new_head_are_never_the_best(folder: Path) -> None:
    # No text of dev has an entity of a type that is there to learn, so that all scores are 0, and none is better.
    (folder / "dev.jsonl").write_text('{"text": "hello there", "entities": [[0, 5, "ODD"]]}\n')
    phases = [{"train": "heads", "epochs": 2, "learning_rate": 1e-2}] * 2
    config = configure(folder, "run", [{**SPANS, "dev": "dev.jsonl"}], *phases)
    events: list[Mapping[str, Any]] = []
    random = start_model(raw(), config.model, [read_set(config.data[0], root=folder, seed=0)], seed=0).loaded
    train(config, base=raw(), watch=events.append)
    scores = [event for event in events if event["event"] == "scores"]
    assert {event["mean"] for event in scores} == {0.0}
    assert [(event["phase"], event["step"]) for event in scores if event["best"]] == [(0, 5), (1, 0)]
    trained = weights(config)
    for name, before in random.model.tag_head.state_dict().items():  # type: ignore[union-attr]
        assert not torch.equal(trained[f"tag_head.{name}"], before), name


@pytest.mark.parametrize(
    ("phase", "model"),
    [
        ({"epochs": {"class": 1}}, {}),
        ({"epochs": 1, "freeze_heads": ["tags"]}, {}),
        ({"epochs": 1}, {"class_labels": ["a", "b"], "new_heads": ["class"]}),
    ],
    ids=["epochs", "frozen", "no data"],
)
def test_a_new_head_that_nothing_trains_is_refused(folder: Path, phase: dict[str, Any], model: dict[str, Any]) -> None:
    task = "class" if model else "tags"
    config = configure(folder, "run", [SPANS] if model else [CLASSES, SPANS], {"train": "heads", **phase}, model=model)
    with pytest.raises(ConfigError, match=f"the {task} head is new, and no phase trains it"):
        train(config, base=raw())
    assert not (Path(config.output) / "run.json").exists()


def test_a_new_head_without_data_is_refused(folder: Path) -> None:
    config = configure(folder, "run", [SPANS], {"train": "heads"}, model={"new_heads": ["class"]})
    with pytest.raises(ConfigError, match=r"new_heads = \['class'\]: there is no \[\[data\]\] for class"):
        train(config, base=with_both_heads())


def without_dev(data: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in data.items() if name != "dev"}


def test_dev_scores_choose_no_weights_of_a_task_they_do_not_measure(folder: Path) -> None:
    phase = {"train": "heads", "epochs": 6, "learning_rate": 1e-2}
    data = [without_dev(CLASSES), SPANS]
    alone = configure(folder, "alone", [without_dev(CLASSES)], phase, model={"new_heads": ["class"]})
    # The tags are measured and stay as they were, so the start would be the best: nothing is better.
    tables = {"model": {"new_heads": ["class"], "calibrate": False}, "early_stopping": {"patience": 1}}
    both = configure(folder, "both", data, {**phase, "epochs": {"class": 6, "tags": 0}}, **tables)
    events: list[Mapping[str, Any]] = []
    train(alone, base=with_both_heads())
    train(both, base=with_both_heads(), watch=events.append)
    assert_same(weights(alone), weights(both))
    (note,) = [event["text"] for event in events if event["event"] == "note"]
    assert note.startswith("class is trained without a dev set: the last weights are kept")
    assert not any(event["best"] for event in events if event["event"] == "scores")


def test_the_guard_refuses_last_weights_that_nothing_else_measures(folder: Path) -> None:
    base = tiny(seed=2)
    rows = list(itertools.combinations([*TEXTS, "london", "hello there"], 2))
    model = TextModel(base)
    lines = [f"{first}\t{second}\t{model.similarity(first, second)!r}\n" for first, second in rows]
    (folder / "own.tsv").write_text("".join(lines), encoding="utf-8")  # no other weights rank them as well
    measured = {**{name: value for name, value in SCORES.items() if name != "path"}, "dev": "own.tsv"}
    phase = {"train": "all", "epochs": 2, "learning_rate": 0.5}
    events: list[Mapping[str, Any]] = []
    config = configure(folder, "run", [without_dev(CLASSES), measured], phase, guard={"max_drop": 0.0})
    result = train(config, base=base, watch=events.append)
    scores = [event for event in events if event["event"] == "scores"]
    assert scores[-1]["refused"]
    assert result.scores["own (similarity)"] >= scores[0]["sets"]["own (similarity)"]


def test_tasks_that_weights_do_not_name_count_once(folder: Path) -> None:
    phase = {"train": "heads", "epochs": 6, "learning_rate": 1e-2}
    events: list[Mapping[str, Any]] = []
    config = configure(folder, "run", [CLASSES], phase, early_stopping={"weights": {"tags": 2}})
    result = train(config, base=raw(), watch=events.append)
    scores = [event for event in events if event["event"] == "scores"]
    assert [event["mean"] for event in scores] == [event["sets"]["classes (class)"] for event in scores]
    assert result.scores["classes (class)"] == max(event["mean"] for event in scores) > 0


def test_cached_states_give_what_the_whole_model_gives(folder: Path) -> None:
    from indexer.training.encoded import encode
    from indexer.training.scoring import class_logits, predict_spans
    from indexer.training.states import cached_states

    model = TextModel(with_both_heads(), device="cpu")
    config = configure(folder, "run", [CLASSES, SPANS], {"train": "heads"})
    classes, spans = (read_set(one, root=folder, seed=0) for one in config.data)
    encoded = encode(classes.settings, classes.train, model)
    states = cached_states(model, encoded, folder / "cache")
    assert np.allclose(class_logits(model, encoded, states), class_logits(model, encoded), atol=1e-5)
    encoded = encode(spans.settings, spans.train, model)
    states = cached_states(model, encoded, folder / "cache")
    assert predict_spans(model, encoded, states) == predict_spans(model, encoded)
    texts = [example.text for example in spans.train]  # type: ignore[union-attr]
    product = [[(s.type, s.start, s.end) for s in analysis.spans] for analysis in model.analyse(texts)]
    assert predict_spans(model, encoded) == product


def test_states_that_half_precision_cannot_hold_are_kept_whole(folder: Path) -> None:
    from indexer.training.encoded import encode
    from indexer.training.scoring import predict_spans
    from indexer.training.states import cached_states

    base = with_both_heads()
    norm = [module for module in base.model.backbone.modules() if isinstance(module, torch.nn.LayerNorm)][-1]
    with torch.no_grad():
        norm.weight.mul_(1e5)
    model = TextModel(base, device="cpu")
    spans = read_set(configure(folder, "run", [SPANS], {"train": "heads"}).data[0], root=folder, seed=0)
    encoded = encode(spans.settings, spans.train, model)
    states = cached_states(model, encoded, folder / "cache")
    assert np.isfinite(states.values).all()
    assert np.abs(states.values).max() > 65_504
    assert predict_spans(model, encoded, states) == predict_spans(model, encoded)


def test_scores_that_are_not_there_are_null_in_files(folder: Path) -> None:
    (folder / "equal.tsv").write_text("hello\tthere\t3\nada\tmet\t3\n")
    equal = {**{name: value for name, value in SCORES.items() if name != "path"}, "dev": "equal.tsv"}
    config = configure(folder, "run", [CLASSES, equal], {"train": "all", "epochs": 1})
    first, again = train(config, base=raw()), train(config, base=raw())

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    output = Path(config.output)
    for text in (output.joinpath("scores.json").read_text(), *output.joinpath("log.jsonl").read_text().splitlines()):
        json.loads(text, parse_constant=refuse)
    assert json.loads((Path(config.output) / "scores.json").read_text())["sets"]["equal (similarity)"] is None
    assert all(np.isnan(result.scores["equal (similarity)"]) for result in (first, again))


def test_a_finished_model_is_on_the_disk_before_it_has_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    result = train(configure(folder, "run", [CLASSES], {"train": "heads", "epochs": 1}), base=raw())
    unfinished = f"{result.folder}.unfinished"
    files = {f"{unfinished}/{path.name}" for path in result.folder.iterdir()}
    assert files | {unfinished} == {path for path in synced if path.startswith(unfinished)}
    assert synced[-1] == str(result.folder.parent)


def test_another_configuration_or_other_data_do_not_go_into_a_runs_folder(folder: Path) -> None:
    config = configure(folder, "run", [CLASSES], {"train": "heads", "epochs": 1})
    first = train(config, base=raw())
    again = train(config, base=raw())
    assert (again.report, again.scores) == (None, first.scores)
    with pytest.raises(ConfigError, match="holds a run with another configuration"):
        train(replace(config, seed=7), base=raw())
    with (folder / "classes.csv").open("a") as file:
        file.write("hello,place\n")
    with pytest.raises(ConfigError, match="holds a run with other data"):
        train(config, base=raw())


@pytest.mark.parametrize(
    ("seeds", "fingerprint", "message"),
    [
        ((5, 0), "fingerprint", "another base model, by the fingerprint of its embeddings"),
        ((0, 5), "heads_fingerprint", "a base model with other heads, by their fingerprint"),
    ],
    ids=["backbone", "heads"],
)
def test_a_run_does_not_go_on_from_another_base(
    folder: Path, seeds: tuple[int, int], fingerprint: str, message: str
) -> None:
    base, other = (with_heads(tiny(seed=one), class_labels=sorted(WORDS), seed=two) for one, two in ((0, 0), seeds))
    config = configure(folder, "run", [CLASSES], {"train": "heads", "epochs": 2})
    with pytest.raises(KeyboardInterrupt):
        train(config, base=base, watch=Stop(3))
    was, now = (getattr(one, fingerprint)[:12] for one in (base, other))
    with pytest.raises(ConfigError, match=rf"holds a run that began from {message} \({was}, now {now}\)"):
        train(config, base=other)
    train(config, base=base)


@pytest.mark.parametrize(
    ("second", "tables", "message"),
    [
        ({"train": "all"}, {"matryoshka": {"dimensions": [100_000]}}, "the embedding has"),
        ({"train": "top:9"}, {}, "the backbone has 4 layers"),
        ({"train": "lora", "lora": {"targets": ["qurey"]}}, {}, "the backbone has no linear layer 'qurey'"),
    ],
    ids=["matryoshka", "top", "lora"],
)
def test_what_is_refused_before_the_first_step_leaves_the_folder_free(
    folder: Path, second: dict[str, Any], tables: dict[str, Any], message: str
) -> None:
    phase = {"train": "all", "epochs": 1}
    with pytest.raises(ConfigError, match=message):
        train(configure(folder, "run", [SCORES], phase, {**phase, **second}, **tables), base=raw())
    train(configure(folder, "run", [SCORES], phase), base=raw())


def test_two_runs_cannot_share_a_folder(folder: Path) -> None:
    config = configure(folder, "run", [CLASSES], {"train": "heads", "epochs": 1})

    def start_another(event: Mapping[str, Any]) -> None:
        if event["event"] == "step":
            with pytest.raises(LockedError, match="is being written to by process"):
                train(config, base=raw())

    train(config, base=raw(), watch=start_another)


def test_a_folder_of_something_else_is_left_alone(folder: Path) -> None:
    (folder / "notes").mkdir()
    (folder / "notes" / "precious.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty, and holds no run"):
        train(configure(folder, "notes", [CLASSES], {"train": "heads"}), base=raw())


@pytest.mark.parametrize("kind", ["heads", "all"])
def test_half_precision_trains_contextual_heads(folder: Path, kind: str) -> None:
    config = configure(
        folder,
        "run",
        [SPANS],
        {"train": kind, "epochs": 1, "precision": "bf16", "dropout": 0.2},
        model={"tag_head": "contextual", "tag_head_width": 16, "tag_layers": [-1, -2]},
        early_stopping={"keep": "last"},
    )
    train(config, base=raw())
    assert all(tensor.dtype == torch.float32 and torch.isfinite(tensor).all() for tensor in weights(config).values())


def test_the_class_temperature_is_fitted_on_dev(folder: Path) -> None:
    config = configure(folder, "run", [CLASSES], {"train": "heads", "epochs": 5, "learning_rate": 1e-2})
    train(config, base=raw())
    assert json.loads((Path(config.output) / "model" / "config.json").read_text())["class_temperature"] != 1.0


def test_lora_trains_the_backbone_and_leaves_a_plain_model(folder: Path) -> None:
    pytest.importorskip("peft")
    phase = {"train": "lora", "epochs": 2, "learning_rate": 1e-2, "lora": {"rank": 2, "save": "apart"}}
    whole, stopped = (
        configure(folder, name, [CLASSES, SPANS], phase, early_stopping={"keep": "last"}, checkpoint_every=2)
        for name in ("whole", "stopped")
    )
    base = raw()
    train(whole, base=base)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, base=raw(), watch=Stop(5))
    train(stopped, base=raw())
    assert_same(weights(whole), weights(stopped))
    after = weights(whole)
    before = base.model.state_dict()
    changed = {n for n in after if n.startswith("backbone.") and not torch.equal(before[n], after[n])}
    assert changed
    assert all(name.split(".")[-2] in ("query", "key", "value") for name in changed)
    assert (Path(whole.output) / "adapter-1" / "adapter_model.safetensors").is_file()


def test_a_retagged_index_keeps_its_vectors(folder: Path) -> None:
    from indexer.api import add_documents, retag_documents
    from indexer.records import Document
    from search.searcher import Searcher

    base = save(with_both_heads(), folder / "base")
    add_documents(folder / "index", [Document(str(n), text) for n, text in enumerate(TEXTS)], model=base)
    config = configure(
        folder, "run", [SPANS, CLASSES], {"train": "heads", "epochs": 20, "learning_rate": 3e-2}, model={"base": base}
    )
    new = train(config).folder
    before = _vectors(folder / "index")
    assert retag_documents(folder / "index", model=str(new)) == 3
    assert _vectors(folder / "index") == before
    trained = TextModel.load(new)
    with Searcher(folder / "index") as searcher:
        found = {hit.id: [(e.type, e.start, e.end) for e in hit.entities] for hit in searcher.search("ada", k=3)}
    assert found == {
        str(number): [(s.type, s.start, s.end) for s in analysis.spans]
        for number, analysis in enumerate(trained.analyse(TEXTS))
    }
    assert load_checkpoint(new).fingerprint == load_checkpoint(base).fingerprint


def _vectors(index: Path) -> list[Any]:
    from fakes import table_rows

    return [table_rows(index, name) for name in ("passages", "pooled", "pending")]


def test_rates_rise_and_fall() -> None:
    factors = [rate_factor(step, 10, warmup=0.2, decay="cosine") for step in range(10)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[2:] == sorted(factors[2:], reverse=True)
    assert rate_factor(9, 10, warmup=0.0, decay="constant") == 1.0


def test_a_run_stopped_by_a_full_disk_says_so_and_goes_on(folder: Path, small_disk: Path) -> None:
    base = save(raw(), folder / "base")
    (folder / "run.toml").write_text(
        f'output = "{small_disk}/run"\n[model]\nbase = "{base}"\ntag_layers = [-1, -2, -3, -4]\n'
        '[[data]]\ntask = "tags"\npath = "spans.jsonl"\ndev = 0.2\n[[phase]]\ntrain = "heads"\nepochs = 1\n'
    )
    command = [sys.executable, "-m", "indexer.cli", "train", str(folder / "run.toml")]
    for size in ("40k", "90k", "150k"):  # too small for the states, for the state of the run, for the model
        subprocess.run(["mount", "-o", f"remount,size={size}", str(small_disk)], check=True)
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        last = result.stderr.splitlines()[-1]
        assert result.returncode == 1, last
        assert last.startswith(f"Error: {small_disk}/run: ")
        assert "No space left on device" in last
        assert last.endswith("give the same command again: the run goes on from where it stands")
    subprocess.run(["mount", "-o", "remount,size=10m", str(small_disk)], check=True)
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert load_checkpoint(small_disk / "run" / "model").model.tag_head is not None


def test_an_output_that_cannot_be_a_folder_is_named(folder: Path) -> None:
    (folder / "file").write_text("")
    with pytest.raises(ConfigError, match="file/run' cannot be a folder: Not a directory: choose another"):
        train(configure(folder, "file/run", [CLASSES], {"train": "heads"}), base=raw())
