"""Hostile model folders: nothing in them is executed, nothing outside is read, and each is refused in one line.

Every folder is loaded as a user would, by `indexer encode --model`, in a process with little memory and little time:
exit code 1, one line on stderr, no file made. `test_checkpoint.py` has the damage that is no attack.
"""

# ruff: noqa: ARG001 - each folder's function takes the canary, which not all need

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from models import multi_task, save_raw, wordpiece
from safetensors.torch import load_file, save_file
from torch import Tensor

from indexer.checkpoint import save_checkpoint

MEMORY = 3 * 2**30  # address space beyond what torch has mapped
SECONDS = 120  # most of it the start of Python and torch on a busy machine

CANARY = "canary"

# Runs in the child: the command line in turn on each folder, so that torch is imported once.
CHILD = """
import contextlib, io, json, os, resource, sys, time
import torch, transformers, indexer.checkpoint, indexer.model  # before the limit: what they map does not count
used = int(next(l for l in open("/proc/self/status") if l.startswith("VmSize")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]),) * 2)
from indexer.cli import main
for folder in sys.argv[2:]:
    out, err = io.StringIO(), io.StringIO()
    command = "indexer encode texts.txt --lines --output out.npy --device cpu --model"
    sys.argv = [*command.split(), folder]
    started = time.monotonic()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        except BaseException as error:
            code = repr(error)
    print(json.dumps([folder, code, out.getvalue(), err.getvalue(), time.monotonic() - started]), flush=True)
"""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a run over one folder ended with."""

    code: int | str
    out: str
    err: str
    seconds: float


class Payload:
    """Makes the canary when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mknod, (str(self.canary),)


# Building blocks


def own(folder: Path, **options: Any) -> Path:
    """A folder of ours that works."""
    if options:
        save_checkpoint(multi_task(max_length=40, **options), folder)
        return folder
    template = folder.with_name(".own")
    if not template.exists():
        save_checkpoint(multi_task(max_length=40), template)
    return Path(shutil.copytree(template, folder))


def raw(folder: Path) -> Path:
    """A folder as Hugging Face's `save_pretrained` writes it, that works."""
    template = folder.with_name(".raw")
    if not template.exists():
        save_raw(template, wordpiece())
    return Path(shutil.copytree(template, folder))


def change(folder: Path, file: str = "config.json", **fields: Any) -> None:
    path = folder / file
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(before | fields), encoding="utf-8")


def encoder(folder: Path, **fields: Any) -> None:
    """Change the backbone's part of a configuration of ours."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    change(folder, encoder_config=config["encoder_config"] | fields)


def tensors(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def header(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the header of the safetensors file, whose data stays."""
    path = folder / "model.safetensors"
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    fields = json.loads(content[8 : 8 + size])
    edit(fields)
    path.write_bytes(safetensors(json.dumps(fields).encode(), content[8 + size :]))


def safetensors(head: bytes, data: bytes = b"", *, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(head) if length is None else length) + head + data


def first_name(fields: dict[str, Any]) -> str:
    return next(name for name in sorted(fields) if name.endswith("output.dense.weight"))


def code(folder: Path, canary: Path) -> dict[str, dict[str, str]]:
    """Modules that make the canary when they are imported, and the `auto_map` that names them."""
    text = f"import os\nos.mknod({str(canary)!r})\nfrom transformers import BertConfig as EvilConfig\n"
    names = ("configuration_evil", "modeling_evil", "tokenization_evil", "modeling_bert", "custom_generate/generate")
    for name in names:
        (folder / f"{name}.py").parent.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(text)
    (folder / "__init__.py").write_text(text)
    return {
        "auto_map": {
            "AutoConfig": "configuration_evil.EvilConfig",
            "AutoModel": "modeling_evil.EvilModel",
            "AutoTokenizer": ["tokenization_evil.EvilTokenizer", "tokenization_evil.EvilTokenizer"],  # type: ignore[dict-item]
        }
    }


# The folders: each function makes one, and its docstring says what is tried


REFUSED: list[Callable[[Path, Path], None]] = []
HARMLESS: list[Callable[[Path, Path], None]] = []


def refused(make: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
    REFUSED.append(make)
    return make


def harmless(make: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
    """The folder works, because what is hostile in it is never looked at."""
    HARMLESS.append(make)
    return make


@refused
def pickle_named_bin(folder: Path, canary: Path) -> None:
    raw(folder)
    (folder / "model.safetensors").unlink()
    torch.save({"embeddings.word_embeddings.weight": Payload(canary)}, folder / "pytorch_model.bin")


@refused
def pickle_of_the_old_kind_named_bin(folder: Path, canary: Path) -> None:
    own(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(canary)))


@refused
def pickle_named_safetensors(folder: Path, canary: Path) -> None:
    raw(folder)
    (folder / "model.safetensors").write_bytes(pickle.dumps(Payload(canary)))


@refused
def torch_zip_named_safetensors(folder: Path, canary: Path) -> None:
    own(folder)
    torch.save(Payload(canary), folder / "model.safetensors")


@refused
def pickle_by_an_index_of_shards(folder: Path, canary: Path) -> None:
    raw(folder)
    (folder / "model.safetensors").unlink()
    (folder / "shard.bin").write_bytes(pickle.dumps(Payload(canary)))
    names = {"metadata": {}, "weight_map": {"embeddings.word_embeddings.weight": "shard.bin"}}
    for kind in ("pytorch_model.bin.index.json", "model.safetensors.index.json"):
        (folder / kind).write_text(json.dumps(names))


@refused
def shards_outside_of_the_folder(folder: Path, canary: Path) -> None:
    raw(folder)
    outside = folder.with_name("outside.safetensors")
    (folder / "model.safetensors").rename(outside)
    for name in ("../outside.safetensors", str(outside)):
        names = {"metadata": {"total_size": 1}, "weight_map": {"embeddings.word_embeddings.weight": name}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(names))


@refused
def other_frameworks(folder: Path, canary: Path) -> None:
    raw(folder)
    (folder / "model.safetensors").unlink()
    for name in ("tf_model.h5", "flax_model.msgpack", "model.ckpt.index", "model.pt", "rust_model.ot"):
        (folder / name).write_bytes(pickle.dumps(Payload(canary)))


@refused
def code_for_an_unknown_type(folder: Path, canary: Path) -> None:
    raw(folder)
    change(folder, model_type="evil", architectures=["EvilModel"], trust_remote_code=True, **code(folder, canary))


@refused
def code_in_our_configuration(folder: Path, canary: Path) -> None:
    own(folder)
    encoder(folder, model_type="evil", trust_remote_code=True, **code(folder, canary))
    change(folder, trust_remote_code=True, **code(folder, canary))


@harmless
def code_beside_a_known_type(folder: Path, canary: Path) -> None:
    raw(folder)
    auto_map = code(folder, canary)
    change(folder, trust_remote_code=True, **auto_map)
    change(folder, "tokenizer_config.json", trust_remote_code=True, **auto_map)
    change(folder, "generation_config.json", custom_generate="custom_generate", trust_remote_code=True)


@harmless
def code_of_another_repository(folder: Path, canary: Path) -> None:
    raw(folder)
    evil = code(folder, canary)["auto_map"]
    change(folder, auto_map={name: f"{folder}--{target}" for name, target in evil.items()}, trust_remote_code=True)


@refused
def tokenizer_class_from_code(folder: Path, canary: Path) -> None:
    raw(folder)
    (folder / "tokenizer.json").unlink()
    auto_map = code(folder, canary)
    change(folder, "tokenizer_config.json", tokenizer_class="EvilTokenizer", trust_remote_code=True, **auto_map)


@harmless
def templates(folder: Path, canary: Path) -> None:
    raw(folder)
    template = "{{ ''.__class__.__mro__[1].__subclasses__() }}{% for x in range(10**12) %}{% endfor %}"
    change(folder, "tokenizer_config.json", chat_template=template)
    (folder / "chat_template.jinja").write_text(template)


@harmless
def names_that_lead_elsewhere(folder: Path, canary: Path) -> None:
    own(folder)
    change(folder, _name_or_path="../../../etc", name_or_path="/etc/passwd", transformers_version="../..")
    encoder(folder, _name_or_path="/root/.ssh", name_or_path="../outside")


@refused
def backbone_by_a_path(folder: Path, canary: Path) -> None:
    own(folder)
    raw(folder.with_name(f"{folder.name} outside"))
    source = {"name": f"../{folder.name} outside", "revision": "main", "sha256": "0" * 64}
    change(folder, backbone_source=source)


@refused
def backbone_by_a_path_in_the_revision(folder: Path, canary: Path) -> None:
    own(folder)
    change(folder, backbone_source={"name": "a/b", "revision": "../../../../etc", "sha256": "0" * 64})


@refused
def weights_linked_to_a_device(folder: Path, canary: Path) -> None:
    own(folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("/dev/zero")


@refused
def raw_weights_linked_to_a_device(folder: Path, canary: Path) -> None:
    raw(folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("/dev/zero")


@refused
def configuration_linked_to_a_device(folder: Path, canary: Path) -> None:
    own(folder)
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/dev/zero")


@refused
def configuration_linked_out_of_the_folder(folder: Path, canary: Path) -> None:
    own(folder)
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/etc/passwd")


@refused
def configuration_that_is_a_pipe(folder: Path, canary: Path) -> None:
    own(folder)
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


@refused
def weights_that_are_a_pipe(folder: Path, canary: Path) -> None:
    own(folder)
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")


@refused
def raw_weights_that_are_a_pipe(folder: Path, canary: Path) -> None:
    raw(folder)
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")


@refused
def tokenizer_that_is_a_pipe(folder: Path, canary: Path) -> None:
    own(folder)
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")


@refused
def raw_tokenizer_that_is_a_pipe(folder: Path, canary: Path) -> None:
    raw(folder)
    (folder / "tokenizer_config.json").unlink()
    os.mkfifo(folder / "tokenizer_config.json")


@refused
def header_of_two_to_the_63rd(folder: Path, canary: Path) -> None:
    own(folder)
    (folder / "model.safetensors").write_bytes(safetensors(b"{}", length=2**63))


@refused
def raw_header_of_all_ones(folder: Path, canary: Path) -> None:
    raw(folder)
    (folder / "model.safetensors").write_bytes(safetensors(b"{}", length=2**64 - 1))


@refused
def header_of_100_megabytes(folder: Path, canary: Path) -> None:
    own(folder)
    with (folder / "model.safetensors").open("wb") as file:  # sparse: it takes no room
        file.write(safetensors(b"{", length=99_999_999))
        file.truncate(100_000_007)


@refused
def header_that_is_no_json(folder: Path, canary: Path) -> None:
    raw(folder)
    (folder / "model.safetensors").write_bytes(safetensors(b"import os; os.abort()"))


@refused
def header_nested_deeply(folder: Path, canary: Path) -> None:
    own(folder)
    (folder / "model.safetensors").write_bytes(safetensors(b'{"a":' * 100_000))


@refused
def header_that_names_a_tensor_twice(folder: Path, canary: Path) -> None:
    own(folder)
    head = (
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}'
    )
    (folder / "model.safetensors").write_bytes(safetensors(head, bytes(8)))


@refused
def offsets_that_overlap(folder: Path, canary: Path) -> None:
    own(folder)

    def edit(fields: dict[str, Any]) -> None:
        same = sorted(name for name in fields if name.endswith("output.dense.bias"))
        fields[same[0]]["data_offsets"] = fields[same[1]]["data_offsets"]

    header(folder, edit)


@refused
def offsets_out_of_the_file(folder: Path, canary: Path) -> None:
    raw(folder)
    header(folder, lambda fields: fields[first_name(fields)].update(data_offsets=[2**40, 2**40 + 8_192]))


@refused
def offsets_below_zero(folder: Path, canary: Path) -> None:
    own(folder)
    header(folder, lambda fields: fields[first_name(fields)].update(data_offsets=[-8, 8]))


@refused
def shape_beyond_all_memory(folder: Path, canary: Path) -> None:
    own(folder)
    header(folder, lambda fields: fields[first_name(fields)].update(shape=[2**32, 2**32]))


@refused
def dtype_that_is_none(folder: Path, canary: Path) -> None:
    raw(folder)
    header(folder, lambda fields: fields[first_name(fields)].update(dtype="O"))


@refused
def dtype_of_another_size(folder: Path, canary: Path) -> None:
    own(folder)
    header(folder, lambda fields: fields[first_name(fields)].update(dtype="F64"))


@refused
def integers_for_weights(folder: Path, canary: Path) -> None:
    own(folder)
    tensors(folder, lambda weights: weights.update({k: v.to(torch.int64) for k, v in weights.items() if "dense" in k}))


@refused
def raw_integers_for_weights(folder: Path, canary: Path) -> None:
    raw(folder)
    tensors(folder, lambda weights: weights.update({k: v.to(torch.int64) for k, v in weights.items() if "dense" in k}))


@refused
def complex_weights(folder: Path, canary: Path) -> None:
    own(folder)
    tensors(folder, lambda weights: weights.update({first_name(weights): torch.zeros(32, 64, dtype=torch.complex64)}))


@refused
def weights_of_another_shape(folder: Path, canary: Path) -> None:
    own(folder)
    tensors(folder, lambda weights: weights.update({first_name(weights): torch.zeros(32, 0)}))


@refused
def missing_weights(folder: Path, canary: Path) -> None:
    raw(folder)
    tensors(folder, lambda weights: weights.pop(first_name(weights)))


@refused
def weights_that_are_not_numbers(folder: Path, canary: Path) -> None:
    own(folder)
    tensors(folder, lambda weights: weights[first_name(weights)].fill_(float("nan")))


@refused
def raw_weights_that_are_infinite(folder: Path, canary: Path) -> None:
    raw(folder)
    tensors(folder, lambda weights: weights[first_name(weights)].fill_(float("-inf")))


@refused
def weights_that_overflow(folder: Path, canary: Path) -> None:
    raw(folder)
    tensors(folder, lambda weights: [tensor.fill_(3e38) for name, tensor in weights.items() if "dense" in name])


@refused
def names_with_control_characters(folder: Path, canary: Path) -> None:
    own(folder)
    tensors(folder, lambda weights: weights.update({"\x1b[2J\x1b]0;owned\x07\r\n": torch.zeros(1)}))


@refused
def configuration_nested_deeply(folder: Path, canary: Path) -> None:
    own(folder)
    (folder / "config.json").write_bytes(b'{"a":' * 1_000_000)


@refused
def configuration_of_a_hundred_megabytes(folder: Path, canary: Path) -> None:
    own(folder)
    (folder / "config.json").write_bytes(b'{"a": [' + b"[]," * 33_000_000 + b"0]}")


@refused
def configuration_without_end(folder: Path, canary: Path) -> None:
    own(folder)
    with (folder / "config.json").open("wb") as file:
        file.truncate(2**40)


@refused
def configuration_with_a_number_without_end(folder: Path, canary: Path) -> None:
    own(folder)
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"max_length": 40', f'"max_length": {"9" * 100_000}'))


def _sizes(kind: str, **fields: Any) -> None:
    def make(folder: Path, canary: Path) -> None:
        if kind == "own":
            own(folder)
            encoder(folder, **fields)
        else:
            raw(folder)
            change(folder, **fields)

    make.__name__ = f"{kind}_with_" + "_".join(f"{name}_{value}" for name, value in fields.items())
    REFUSED.append(make)


for kind in ("own", "raw"):
    _sizes(kind, hidden_size=2**31 // 4 * 4, num_attention_heads=4)
    _sizes(kind, vocab_size=2**40)
    _sizes(kind, num_hidden_layers=10**6)
    _sizes(kind, hidden_size=-32)
    _sizes(kind, num_attention_heads=0)
    _sizes(kind, intermediate_size=10**12)
    _sizes(kind, max_position_embeddings=10**12)
    _sizes(kind, hidden_act="__import__('os').abort")


@refused
def head_of_a_size_beyond_memory(folder: Path, canary: Path) -> None:
    own(folder, tag_head="contextual", tag_head_width=16)
    change(folder, tag_head_width=10**9)


@refused
def a_very_long_list_of_labels(folder: Path, canary: Path) -> None:
    own(folder)
    change(folder, class_labels=[str(n) for n in range(200_000)])


@refused
def too_few_labels(folder: Path, canary: Path) -> None:
    own(folder)
    change(folder, class_labels=["one"], entity_types=["PER"])


@refused
def labels_of_another_kind(folder: Path, canary: Path) -> None:
    own(folder)
    change(folder, class_labels={"0": "a"}, id2label={"0": "x", "1e9": "y"})


@refused
def raw_label_map_of_another_kind(folder: Path, canary: Path) -> None:
    raw(folder)
    change(folder, id2label={"x": "y"}, num_labels=-3)


@refused
def labels_with_control_characters(folder: Path, canary: Path) -> None:
    own(folder)
    change(folder, class_labels=["\x1b[2J", "\x1b[2J", "a\nError: all is well"])


@refused
def a_very_long_list_of_pooled_layers(folder: Path, canary: Path) -> None:
    own(folder)
    change(folder, pool_layers=[-1] * 300_000, layer_weights=[1.0] * 300_000)


@refused
def prefix_of_many_megabytes(folder: Path, canary: Path) -> None:
    own(folder)
    change(folder, prefix="the " * 2_000_000)


@refused
def window_of_any_length(folder: Path, canary: Path) -> None:
    own(folder)
    change(folder, max_length=2**62)


@refused
def tokenizer_that_is_broken(folder: Path, canary: Path) -> None:
    own(folder)
    (folder / "tokenizer.json").write_bytes(b'{"version": "1.0", "model": {"type": "Evil"}}')


@refused
def tokenizer_nested_deeply(folder: Path, canary: Path) -> None:
    own(folder)
    (folder / "tokenizer.json").write_bytes(b"[" * 1_000_000)


@refused
def tokenizer_with_a_pickle(folder: Path, canary: Path) -> None:
    own(folder)
    (folder / "tokenizer.json").write_bytes(pickle.dumps(Payload(canary)))


@refused
def tokenizer_with_a_pattern_that_is_none(folder: Path, canary: Path) -> None:
    own(folder)
    change(folder, "tokenizer.json", normalizer={"type": "Replace", "pattern": {"Regex": "(" * 10_000}, "content": ""})


@refused
def tokenizer_with_a_pattern_of_megabytes(folder: Path, canary: Path) -> None:
    own(folder)
    pattern = "(a?){50}" * 200_000 + "("
    change(folder, "tokenizer.json", normalizer={"type": "Replace", "pattern": {"Regex": pattern}, "content": ""})


@refused
def tokenizer_with_a_pattern_that_takes_for_ever(folder: Path, canary: Path) -> None:
    own(folder)
    pattern = "(x+x+)+(x+x+)+y"
    change(folder, "tokenizer.json", normalizer={"type": "Replace", "pattern": {"Regex": pattern}, "content": ""})


@refused
def tokenizer_with_a_table_that_is_none(folder: Path, canary: Path) -> None:
    own(folder)
    change(folder, "tokenizer.json", normalizer={"type": "Precompiled", "precompiled_charsmap": "/////w=="})


@refused
def tokenizer_with_ids_beyond_the_weights(folder: Path, canary: Path) -> None:
    own(folder)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokens = [{"id": 2**31, "content": "evil", "special": True} | flags]
    change(folder, "tokenizer.json", added_tokens=tokens)


@refused
def adapter_of_a_huge_rank(folder: Path, canary: Path) -> None:
    own(folder)
    change(folder, adapter={"r": 10**9}, backbone_source={"name": "a/b", "revision": "1", "sha256": 7})
    save_file({"lora_A": torch.zeros(1)}, folder / "adapter_model.safetensors")
    change(folder, "adapter_config.json", r=10**9, peft_type="LORA", base_model_name_or_path="../..", auto_mapping=7)


@refused
def raw_adapter_with_a_pickle(folder: Path, canary: Path) -> None:
    raw(folder)
    (folder / "model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Payload(canary)))
    change(folder, "adapter_config.json", r=8, peft_type="LORA", base_model_name_or_path=str(folder), task_type="X")


@refused
def files_packed_as_one(folder: Path, canary: Path) -> None:
    own(folder)
    files = list(folder.iterdir())  # before the archive is one of them
    with zipfile.ZipFile(folder / "model.zip", "w") as packed:
        for file in files:
            packed.write(file, f"../../{file.name}")
    (folder / "model.zip").replace(folder / "model.safetensors")


# What happens


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Refusal]:
    place = tmp_path_factory.mktemp("hostile")
    (place / "texts.txt").write_text("hello there\n")
    canary = place / CANARY
    names = []
    for make in (*REFUSED, *HARMLESS):
        make(place / make.__name__, canary)
        names.append(make.__name__)
    assert not canary.exists()
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "HF_HUB_OFFLINE": "1",
        "RUST_BACKTRACE": "0",  # writing one takes more memory than the processes have here
        "HF_HOME": str(place / "home"),
        "XDG_CACHE_HOME": str(place / "cache"),
        "HF_MODULES_CACHE": str(place / "modules"),
        "OMP_NUM_THREADS": "1",
    }
    found: dict[str, Refusal] = {}
    while rest := [name for name in names if name not in found]:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", CHILD, str(MEMORY), *rest],
            cwd=place,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            out, err = process.communicate(timeout=SECONDS)
            ended = f"the process ended with {process.returncode}: {err[-500:]}"
        except subprocess.TimeoutExpired:
            process.kill()
            out, _ = process.communicate()
            ended = f"it took more than {SECONDS} seconds"
        for line in out.splitlines():
            folder, code, printed, errors, seconds = json.loads(line)
            found[folder] = Refusal(code, printed, errors, seconds)
        if missing := [name for name in rest if name not in found]:
            found[missing[0]] = Refusal(ended, "", "", 0.0)
    found["canary"] = Refusal(int(canary.exists()), "", "", 0.0)
    shutil.rmtree(place, ignore_errors=True)
    return found


@pytest.mark.parametrize("name", [make.__name__ for make in REFUSED])
def test_a_hostile_folder_is_refused_in_one_line(outcomes: dict[str, Refusal], name: str) -> None:
    outcome = outcomes[name]
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith("Error: ")
    assert outcome.err.count("\n") == 1
    assert outcome.err.strip().isprintable()
    assert "unexpected" not in outcome.err
    assert len(outcome.err) < 2_000


@pytest.mark.parametrize("name", [make.__name__ for make in HARMLESS])
def test_what_is_never_looked_at_does_no_harm(outcomes: dict[str, Refusal], name: str) -> None:
    outcome = outcomes[name]
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == "out.npy: 1 rows of 128 dimensions\n"


def test_nothing_was_executed(outcomes: dict[str, Refusal], tmp_path: Path) -> None:
    assert outcomes["canary"].code == 0
    pickle.loads(pickle.dumps(Payload(tmp_path / CANARY)))  # it would have shown
    assert (tmp_path / CANARY).exists()


def test_there_are_more_than_twenty_kinds() -> None:
    assert len({make.__name__ for make in REFUSED}) == len(REFUSED) >= 60
