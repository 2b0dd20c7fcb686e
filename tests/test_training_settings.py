"""The configuration: short ones work, and every error names file, table, key, value and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from indexer.training.keys import ConfigError
from indexer.training.settings import read_config

SHORT = """
output = "run"

[[data]]
task = "class"
path = "train.csv"
dev = 0.1
"""


def write(folder: Path, text: str) -> Path:
    (folder / "own.toml").write_text(text, encoding="utf-8")
    return folder / "own.toml"


def test_a_short_configuration_is_enough(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, SHORT))
    assert (config.output, config.root, config.seed) == ("run", tmp_path, 0)
    (phase,) = config.phase
    assert (phase.train, phase.rate, phase.epochs_of(config.data[0])) == ("all", 5e-5, 3)
    assert config.data[0].title == "train (class)"


def test_a_byte_order_mark_is_no_part_of_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(SHORT.strip(), encoding="utf-8-sig")
    assert read_config(tmp_path / "own.toml").output == "run"


def test_epochs_by_task_and_set_and_what_a_phase_leaves_out(tmp_path: Path) -> None:
    text = SHORT + (
        '[[data]]\ntask = "tags"\npath = "spans.jsonl"\nname = "spans"\n'
        '[[phase]]\nepochs = {class = 2, spans = 5}\n[[phase]]\ntrain = "heads"\nfreeze_heads = ["tags"]\n'
    )
    config = read_config(write(tmp_path, text))
    assert [[phase.epochs_of(one) for one in config.data] for phase in config.phase] == [[2, 5], [20, 0]]


def test_the_digest_is_of_what_a_run_depends_on(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, SHORT))
    assert read_config(tmp_path / "own.toml", output="elsewhere", root="/").digest() == config.digest()
    assert read_config(write(tmp_path, SHORT.replace("0.1", "0.2"))).digest() != config.digest()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("output = ", "own.toml is not TOML: Invalid value (at end of document)"),
        ("output = " + "[" * 5000, "own.toml cannot be read: its arrays or tables are nested too deeply"),
        (SHORT + "weight = " + "1" * 5000, "own.toml is not TOML: Exceeds the limit"),
        (SHORT + "weight = " + "1" * 400, "[data 1]: weight = 1111"),
        (SHORT + "weight = -" + "1" * 400, "…: it must be a number above 0"),
        (SHORT.replace("train.csv", "a\\u0000b"), "path = 'a\\x00b': it must be a text that is not empty, without NUL"),
        ('output = "x"', "own.toml: the key 'data' is missing: tables [[data]], at least one"),
        (SHORT + "sed = 3", "own.toml, [data 1]: unknown key 'sed'; did you mean 'se"),
        ("sead = 1\n" + SHORT, "own.toml: unknown key 'sead'; did you mean 'seed'? allowed are output, data, seed"),
        ("seed = -1\n" + SHORT, "own.toml: seed = -1: it must be a whole number from 0 to 2.14748e+09"),
        (SHORT.replace('"class"', '"topics"'), '[data 1]: task = \'topics\': it must be one of "class", "tags", '),
        (SHORT.replace("0.1", "1.5"), "[data 1]: dev = 1.5: it must be a number above 0 and at most 0.9, or a text"),
        (SHORT.replace('path = "train.csv"\n', ""), "[data 1]: the key 'path' is missing: give files to train on, or"),
        (SHORT + SHORT.partition("\n\n")[2], "two [[data]] are called 'train (class)': give each a name of its own"),
        (
            SHORT + '[[phase]]\ntrain = "head"',
            '[phase 1]: train = \'head\': it must be "all", "heads", "lora" or "top:N", as "top:2"',
        ),
        (SHORT + "[[phase]]\nepochs = {tag = 2}", "[phase 1]: epochs = {tag = …}: allowed are class, tags, similarity"),
        (SHORT + "[[phase]]\nlearning_rate = 0", "[phase 1]: learning_rate = 0: it must be a number above 0 and at"),
        (SHORT + '[[phase]]\nfreeze_heads = ["class"]', "[phase 1]: train = 'all' with these epochs and freeze_heads"),
        (SHORT + "[phase.lora]\nrank = 0", "phase = {'lora': {'rank': 0}}: it must be tables [[phase]], at least one"),
        (
            SHORT + "[[phase]]\n[phase.lora]\nrank = 0",
            "[phase 1]: lora = {'rank': 0} (lora: rank = 0: it must be a whole number from 1 to 1024): it must be a",
        ),
        (
            SHORT + '[mix]\nstrategy = "temperature"\n[[phase]]\nepochs = {class = 2}',
            "[phase 1]: epochs by task need [mix] strategy = 'balanced', 'round_robin' or 'sequential', not 'temp",
        ),
        (
            SHORT + "[early_stopping]\nweights = {class = 0, tags = 1}",
            "[early_stopping]: weights = {class = 0, tags = 1} are 0 for all that [phase 1] scores (class): give one",
        ),
        (SHORT + "[guard]\nmax_drop = 0.1", "[guard]: max_drop needs a [[data]] of the task similarity with dev"),
        (
            SHORT.replace("class", "similarity") + '[[phase]]\ntrain = "heads"',
            "leaves no data to train on; similarity has no head: it needs 'all', 'lora' or 'top:N'",
        ),
        (
            SHORT.replace("class", "similarity") + 'loss = "infonce"',
            "[data 1]: loss = 'infonce': for form = 'scores' allowed are cosine, cosent",
        ),
        (
            SHORT.replace("class", "similarity") + 'loss = "cosine"',
            "[data 1]: the key 'score_range' is missing: loss = 'cosine' needs [lowest, highest]",
        ),
    ],
)
def test_errors_say_where_and_what(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read_config(write(tmp_path, text))
    assert "own.toml" in str(raised.value)
    assert message in str(raised.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml cannot be read: No such file"):
        read_config(tmp_path / "none.toml")
