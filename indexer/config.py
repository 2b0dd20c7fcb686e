"""What a model is: its backbone, how its layers are pooled, its heads and their labels."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from indexer import bert
from indexer.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

CLASS_HEADS = ("linear", "pooled")
TAG_HEADS = ("linear", "contextual")
WORD_SPLITTERS = ("unicode-handles",)  # heads that were trained on words without handles and hashtags said "unicode"

MAX_PREFIX = 10_000  # characters; it stands in every window
MAX_SCALE = 1e6  # of an adapter; alpha / rank has some 0.1 to 100
_SHOWN = 200  # characters of a value in a message


@dataclass(kw_only=True)
class TagdexConfig:
    """Configuration of a multi-task model, as it stands in a checkpoint's config.json; see `heads.MultiTaskModel`.

    - `encoder_config`: the backbone's own configuration as a dict, with its `model_type`.
    - `pool_layers`: indices into the backbone's hidden states, in the order of concatenation.
    - `layer_weights`: one factor for each pooled layer; `None` means 1.0 for each.
    - `normalize_layers`: L2-normalise each layer's mean before it is weighted.
    - `tag_layers`: the layers whose states of each word, concatenated, feed the tag head.
    - `class_labels`, `entity_types`: the heads' outputs; `None` where the model has no such head.
    - `class_head`: "linear" (on the first token's last state), or "pooled" (one hidden layer of width
      `class_head_width` on the means of the pooled layers).
    - `tag_head`: "linear" (on the state of each word's first token), or "contextual" (on the mean of its tokens:
      projection to `tag_head_width`, then three convolutions).
    - `tag_shapes`: the contextual head also reads each word's case and form in the raw text; see `shapes.py`.
    - `max_length`: tokens of one window, special tokens and prefix included.
    - `prefix`: text put before every text; it is pooled, but never tagged.
    - `word_splitter`: how a text is cut into words for tagging; see `iob.split_words`.
    - `class_temperature`, `class_threshold`: class scores are softmax(logits / temperature); the head abstains
      where the best score is below the threshold.
    - `backbone_source`: where the backbone's weights come from if the checkpoint does not hold them:
      {"name", "revision", "sha256"}; see `sources.py`.
    - `adapter_scale`: factor of the low-rank update of these weights that the checkpoint holds; see `adapter.py`.
    """

    model_type: ClassVar[str] = "tagdex"

    encoder_config: dict[str, Any] | None = None
    pool_layers: list[int] | None = None
    layer_weights: list[float] | None = None
    normalize_layers: bool = False
    tag_layers: list[int] | None = None
    class_labels: list[str] | None = None
    entity_types: list[str] | None = None
    class_head: str = "linear"
    class_head_width: int = 128
    tag_head: str = "linear"
    tag_head_width: int = 256
    tag_shapes: bool = False
    head_dropout: float = 0.1
    max_length: int = 256
    prefix: str = ""
    word_splitter: str = "unicode-handles"
    class_temperature: float = 1.0
    class_threshold: float = 0.0
    backbone_source: dict[str, Any] | None = None
    adapter_scale: float | None = None

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> TagdexConfig:
        """The configuration in a config.json. What is not known is passed over; `check_config` looks at the values."""
        given = {field.name: content[field.name] for field in fields(cls) if field.name in content}
        if given.get("entity_types"):
            given.setdefault("word_splitter", "unicode")  # of the first versions, which did not write it down
        return cls(**given)

    def to_dict(self) -> dict[str, Any]:
        """As it stands in config.json: what differs from the defaults, and how words are cut."""
        given = asdict(self)
        changed = {field.name: given[field.name] for field in fields(self) if given[field.name] != field.default}
        return {"model_type": self.model_type, **changed, "word_splitter": self.word_splitter}

    def save(self, folder: Path) -> None:
        """Write config.json into a folder."""
        content = json.dumps(self.to_dict(), indent=2, sort_keys=True)
        (folder / "config.json").write_text(content + "\n", encoding="utf-8")

    def backbone_config(self) -> bert.BertConfig | PreTrainedConfig:
        """The backbone's configuration, rebuilt from `encoder_config`. Raises `ModelError` for an unknown type."""
        if not isinstance(self.encoder_config, dict | None):
            raise ModelError(f"encoder_config must be an object, got {_shown(self.encoder_config)}")
        given = dict(self.encoder_config or {})
        if (own := bert.reads(given)) is not None:
            return own
        model_type = given.pop("model_type", None)
        if not model_type:
            raise ModelError("the model's config.json has no encoder_config.model_type: which backbone is it?")
        from transformers import AutoConfig

        try:
            config: PreTrainedConfig = AutoConfig.for_model(model_type, **given)
        except ValueError as error:
            reason = " ".join(str(error).split())[:300]  # transformers lists all types that it knows
            raise ModelError(f"unknown backbone type '{model_type}' in encoder_config: {reason}") from error
        if getattr(config, "is_encoder_decoder", False):
            raise ModelError(f"backbone '{model_type}' is an encoder-decoder; only encoders can be used")
        return config

    @property
    def pooled_layers(self) -> list[int]:
        """The pooled layers, in order of concatenation: by default last, second last, third last, fourth last."""
        return [-1, -2, -3, -4] if self.pool_layers is None else list(self.pool_layers)

    @property
    def weights(self) -> list[float]:
        """One factor for each pooled layer."""
        return [1.0] * len(self.pooled_layers) if self.layer_weights is None else list(self.layer_weights)

    @property
    def tagged_layers(self) -> list[int]:
        """The layers that feed the tag head: by default the last."""
        return [-1] if self.tag_layers is None else list(self.tag_layers)


def check_config(config: TagdexConfig, *, layers: int) -> None:
    """Raise `ModelError` where a configuration contradicts itself or its backbone of `layers` layers."""
    check_types(config)
    states = layers + 1  # the embedding layer's output is the first hidden state
    for name, wanted in (("pool_layers", config.pooled_layers), ("tag_layers", config.tagged_layers)):
        if not wanted:
            raise ModelError(f"{name} is empty: name at least one layer, such as [-1]")
        if len(wanted) > states:
            raise ModelError(f"{name} names {len(wanted):,} hidden states, but the backbone has {states} of them")
        for layer in wanted:
            if not -states <= layer < states:
                raise ModelError(f"{name} asks for hidden state {layer}, but the backbone has {states} of them")
    if len(config.weights) != len(config.pooled_layers):
        raise ModelError(f"layer_weights has {len(config.weights)} values for {len(config.pooled_layers)} pool_layers")
    if not any(config.weights):
        raise ModelError("layer_weights are all zero: every embedding would be zero")
    if config.class_head not in CLASS_HEADS:
        raise ModelError(f"unknown class_head '{config.class_head}'; there are {', '.join(CLASS_HEADS)}")
    if config.tag_head not in TAG_HEADS:
        raise ModelError(f"unknown tag_head '{config.tag_head}'; there are {', '.join(TAG_HEADS)}")
    if config.tag_shapes and config.tag_head != "contextual":
        raise ModelError(f"tag_shapes needs the tag_head 'contextual', got '{config.tag_head}'")
    if config.word_splitter not in WORD_SPLITTERS:
        raise ModelError(
            f"unknown word_splitter '{config.word_splitter}'; there are {', '.join(WORD_SPLITTERS)}: a tag head that "
            "was trained on words cut otherwise has to be trained anew"
        )
    if config.class_temperature <= 0:
        raise ModelError(f"class_temperature must be above 0, got {config.class_temperature}")
    for name, labels in (("class_labels", config.class_labels), ("entity_types", config.entity_types)):
        if labels is not None and (not labels or len(set(labels)) != len(labels)):
            raise ModelError(f"{name} must be distinct and at least one, got {_shown(labels)}")


def check_types(config: TagdexConfig) -> None:
    """Raise `ModelError` for a value of the wrong kind: a config.json may hold anything."""

    def integer(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    def finite(value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return abs(value) <= sys.float_info.max  # false for NaN, and for an integer that no float can hold

    def filled(value: object) -> bool:
        return isinstance(value, str) and value != ""

    for names, holds, wanted in (
        (("pool_layers", "tag_layers"), integer, "integers"),
        (("layer_weights",), finite, "finite numbers"),
        (("class_labels", "entity_types"), filled, "strings"),
    ):
        for name in names:
            values = getattr(config, name)
            if values is not None and not (isinstance(values, list | tuple) and all(map(holds, values))):
                raise ModelError(f"{name} must be a list of {wanted}, got {_shown(values)}")
    for name in ("class_temperature", "class_threshold"):
        if not finite(getattr(config, name)):
            raise ModelError(f"{name} must be a finite number, got {_shown(getattr(config, name))}")
    for name, kind in (
        *((name, str) for name in ("class_head", "tag_head", "word_splitter", "prefix")),
        *((name, bool) for name in ("normalize_layers", "tag_shapes")),
        ("max_length", int),
    ):
        if not isinstance(getattr(config, name), kind):
            raise ModelError(f"{name} must be of type {kind.__name__}, got {_shown(getattr(config, name))}")
    for name in ("class_head_width", "tag_head_width"):
        value = getattr(config, name)
        if not integer(value) or value < 1:
            raise ModelError(f"{name} must be a whole number above 0, got {_shown(value)}")
    if not (finite(config.head_dropout) and 0 <= config.head_dropout < 1):
        raise ModelError(f"head_dropout must be a number from 0 to below 1, got {_shown(config.head_dropout)}")
    if len(config.prefix) > MAX_PREFIX:
        raise ModelError(f"prefix has {len(config.prefix):,} characters, at most {MAX_PREFIX:,} are possible")
    if not isinstance(config.backbone_source, dict | None):
        raise ModelError(f"backbone_source must be an object, got {_shown(config.backbone_source)}")
    scale = config.adapter_scale
    if scale is not None and not (finite(scale) and 0 <= scale <= MAX_SCALE):
        raise ModelError(f"adapter_scale must be a number from 0 to {MAX_SCALE:g}, got {_shown(scale)}")


def _shown(value: object) -> str:
    text = repr(value[:20] if isinstance(value, list | tuple | str) else value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
