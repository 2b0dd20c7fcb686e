"""How fast texts are embedded and tagged, against what else does it on the same machine, in the same run.

    python scripts/bench_embed.py --data DATA [--peers PYTHON] [--texts 400] [--rounds 5] [--json F] [--picture F.svg]

`DATA` holds oewn, wiki-en and acl-anthology: texts of about 12, 30 and 200 tokens. All contenders are loaded first and
then take turns, round after round, on the same texts; a rate is that of a contender's median round, and only ratios
within a run mean anything on a machine that does something else, too. `PYTHON` is an interpreter of an environment with
`sentence-transformers[onnx,openvino]`; without it those are left out.
"""

from __future__ import annotations

import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from indexer import Document, add_documents
from indexer.batches import plan_batches
from indexer.cores import Workers
from indexer.model import TextModel
from indexer.precision import native_bf16
from indexer.records import Analysis, FloatArray
from indexer.sources import MINILM, find_backbone
from indexer.training.data import read_jsonl

PROFILES = ("12 tokens", "30 tokens", "200 tokens")
REFERENCE = "sentence-transformers, fp32"
THREE = "three models: BertModel and two pipelines"
SETTINGS = {  # of bench_embed_peers.py
    "torch": REFERENCE,
    "torch-bf16": "sentence-transformers, bf16",
    "onnx": "sentence-transformers, ONNX fp32",
    "onnx-int8": "sentence-transformers, ONNX int8",
    "openvino": "sentence-transformers, OpenVINO fp32",
}
QUERIES = 200
STARTS = 5


@dataclass(slots=True)
class Contender:
    """Something that embeds texts, and the seconds of each of its rounds."""

    name: str
    embed: Callable[[Sequence[str]], object]
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


# Texts


def profiles(data: Path, count: int) -> dict[str, list[str]]:
    """Real texts by length, drawn by a fixed seed."""
    generator = random.Random(5)
    glosses = [row["definition"] for row in read_jsonl(data / "oewn" / "oewn-synsets.jsonl.xz")]
    sentences = []
    for row in read_jsonl(data / "wiki-en" / "wiki-paragraphs.jsonl.xz"):
        sentences += [part for part in re.split(r"(?<=[a-z]\.) (?=[A-Z])", row["text"]) if 100 < len(part) < 160][:1]
        if len(sentences) >= 20 * count:
            break
    papers = read_jsonl(data / "acl-anthology" / "acl-2016-2024.jsonl.xz")
    abstracts = [row["abstract"] for row in papers if 800 < len(row["abstract"]) < 1300]
    pools = zip(PROFILES, (glosses, sentences, abstracts), (count * 2, count, count // 4), strict=True)
    return {name: generator.sample(pool, size) for name, pool, size in pools}


# Contenders


def bare_loop(model: TextModel) -> Callable[[Sequence[str]], None]:
    """The plain loop that `indexer add` is measured against: tokenise, sort, forward, pool; nothing else."""

    def run(texts: Sequence[str]) -> None:
        windows = model.windows(texts)
        for batch in plan_batches([len(window.ids) for window in windows], max_tokens=model.batch_tokens):
            with torch.inference_mode():
                model.model(*model.pad([windows[at] for at in batch]), classes=False, tags=False)

    return run


def own(exact: TextModel, fast: TextModel | None) -> Iterator[Contender]:
    """tagdex in fp32, and in bf16 where the machine has it."""
    for model in [exact] if fast is None else [exact, fast]:
        yield Contender(f"bare loop, {model.precision}", bare_loop(model))
        yield Contender(f"tagdex, embedding alone, {model.precision}", model.encode)
        yield Contender(f"tagdex, with class and entities, {model.precision}", tagged(model))
        yield Contender(f"indexer add, {model.precision}", added(model))


def tagged(model: TextModel) -> Callable[[Sequence[str]], FloatArray]:
    return lambda texts: np.stack([analysis.pooled for analysis in model.analyse(texts)])


def added(model: TextModel) -> Callable[[Sequence[str]], None]:
    """Read, embed, tag and store, durably, into a new index."""

    def run(texts: Sequence[str]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            add_documents(Path(folder) / "index", (Document(str(n), t) for n, t in enumerate(texts)), model=model)

    return run


class Peer:
    """sentence-transformers in one of its settings, in a process of its own; see bench_embed_peers.py."""

    def __init__(self, python: str, setting: str) -> None:
        script = str(Path(__file__).with_name("bench_embed_peers.py"))
        command = [python, "-W", "ignore", script, setting, str(find_backbone(MINILM))]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._expect("ready")

    def __call__(self, texts: Sequence[str], file: str | None = None) -> None:
        """Embed the texts, and keep the embeddings in a .npy file if one is named."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([list(texts), file]) + "\n")
        self._process.stdin.flush()
        self._expect("done")

    def _expect(self, word: str) -> None:
        assert self._process.stdout is not None
        if (line := self._process.stdout.readline()) != f"{word}\n":
            raise click.ClickException(f"sentence-transformers said {line!r}, not {word}: run {self._process.args}")


def sentence_transformers(python: str, bf16: bool) -> Iterator[Contender]:
    """As its documentation has it: defaults, bf16 where the machine has it, ONNX with and without int8, OpenVINO."""
    for setting, name in SETTINGS.items():
        if setting != "torch-bf16" or bf16:
            yield Contender(name, Peer(python, setting))


def peer_quality(contenders: Sequence[Contender], texts: Sequence[str]) -> Iterator[tuple[str, FloatArray]]:
    """Cosines of each of its settings with its own fp32."""
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for one in contenders:
            if isinstance(one.embed, Peer):
                one.embed(texts, str(Path(folder) / "found.npy"))
                found[one.name] = np.load(Path(folder) / "found.npy")
    for name, vectors in found.items():
        yield name, cosine(found[REFERENCE], vectors)


def separate_models() -> Iterator[Contender]:
    """Three models on the same backbone, one for each task: an embedding, and two pipelines of transformers."""
    from transformers import (
        AutoTokenizer,
        BertForSequenceClassification,
        BertForTokenClassification,
        BertModel,
        pipeline,
    )

    folder = str(find_backbone(MINILM))
    tokenizer = AutoTokenizer.from_pretrained(folder, model_max_length=256)
    embedder = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    classes = pipeline(
        "text-classification",
        model=BertForSequenceClassification.from_pretrained(folder, num_labels=14),
        tokenizer=tokenizer,
        device="cpu",
    )
    entities = pipeline(
        "token-classification",
        model=BertForTokenClassification.from_pretrained(folder, num_labels=7),
        tokenizer=tokenizer,
        aggregation_strategy="simple",
        device="cpu",
    )

    def run(texts: Sequence[str]) -> None:
        texts = list(texts)
        for start in range(0, len(texts), 32):
            encoded = tokenizer(texts[start : start + 32], padding=True, truncation=True, return_tensors="pt")
            with torch.inference_mode():
                embedder(**encoded)
        classes(texts, batch_size=32, truncation=True)
        entities(texts, batch_size=32)

    yield Contender(THREE, run)


# Measuring


def take_turns(contenders: Sequence[Contender], texts: Sequence[str], rounds: int) -> None:
    """A round of each that does not count, then `rounds` of all, one after the other, in changing order."""
    generator = random.Random(1)
    for contender in contenders:
        contender.seconds.clear()
        contender.embed(texts)
    for _ in range(rounds):
        for contender in generator.sample(list(contenders), len(contenders)):
            started = time.perf_counter()
            contender.embed(texts)
            contender.seconds.append(time.perf_counter() - started)


def multiply_rate(dtype: torch.dtype) -> float:
    """FLOP/s of this machine's own matrix products at the sizes of the backbone's larger layers.

    The best of many, of all cores at one product of torch's, and of one product for each core, by torch and by numpy.
    """
    first, second = torch.randn(1024, 384, dtype=dtype), torch.randn(384, 1536, dtype=dtype)
    ways: list[Callable[[int], object]] = [lambda _: first @ second]
    if dtype is torch.float32:
        left, right = first.numpy(), second.numpy()
        ways.append(lambda _: left @ right)
    workers, count = Workers(), torch.get_num_threads()
    best = float("inf")
    for _ in range(50):
        started = time.perf_counter()
        first @ second
        best = min(best, time.perf_counter() - started)
        for way in ways:
            started = time.perf_counter()
            for _ in workers.map(way, range(4 * count)):
                pass
            best = min(best, (time.perf_counter() - started) / (4 * count))
    return 2 * 1024 * 384 * 1536 / best


def linear_work(model: TextModel, texts: Sequence[str]) -> float:
    """FLOPs of the backbone's linear layers over the texts' tokens, without padding."""
    weights = sum(m.weight.numel() for m in model.model.backbone.modules() if isinstance(m, torch.nn.Linear))
    return 2.0 * weights * sum(len(window.ids) for window in model.windows(texts))


def cosine(first: FloatArray, second: FloatArray) -> FloatArray:
    """Row by row, (n,)."""
    return (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)


def changed_tags(exact: Sequence[Analysis], fast: Sequence[Analysis]) -> float:
    """Share of texts whose class or entities differ."""

    def said(one: Analysis) -> Any:
        return one.label.name if one.label else None, [(span.type, span.start, span.end) for span in one.spans]

    return float(np.mean([said(a) != said(b) for a, b in zip(exact, fast, strict=True)]))


def measure(
    name: str, texts: Sequence[str], contenders: Sequence[Contender], model: TextModel, rounds: int
) -> dict[str, Any]:
    """Rates of all contenders on one profile, and ratios to the reference."""
    take_turns(contenders, texts, rounds)
    tokens = sum(len(window.ids) for window in model.windows(texts))
    reference = next((one for one in contenders if one.name == REFERENCE), None)
    rows = {}
    for one in contenders:
        row: dict[str, Any] = {"texts_per_second": round(len(texts) / one.median, 1)}
        row["spread"] = round((max(one.seconds) - min(one.seconds)) / one.median, 2)
        if reference is not None:
            row["against_sentence_transformers"] = round(reference.median / one.median, 2)
        rows[one.name] = row
    click.echo(f"\n{name}: {len(texts)} texts, {tokens / len(texts):.0f} tokens on average")
    for contender, row in rows.items():
        ratio = row.get("against_sentence_transformers", "–")
        click.echo(f"  {contender:46} {row['texts_per_second']:>9,.1f}/s  ×{ratio}  ±{row['spread']:.0%}")
    ratios = ratios_of({one.name: one.median for one in contenders}, model.precision)
    click.echo("  " + "; ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()))
    return {"texts": len(texts), "tokens_per_text": round(tokens / len(texts), 1), "contenders": rows, "ratios": ratios}


def ratios_of(seconds: Mapping[str, float], precision: str) -> dict[str, float]:
    """What matters of the seconds of one model's contenders."""
    tagged, alone = (seconds[f"tagdex, {part}, {precision}"] for part in ("with class and entities", "embedding alone"))
    whole = seconds[f"indexer add, {precision}"]
    return {
        "time of class and entities, of that of the embedding": tagged / alone - 1,
        "rate of indexer add, of that of the bare loop": seconds[f"bare loop, {precision}"] / whole,
        "rate of indexer add, of that of the embedding alone": alone / whole,
        "times as fast as three models": seconds[THREE] / tagged,
    }


def one_query(model: TextModel, texts: Sequence[str]) -> dict[str, float]:
    """Milliseconds to embed one short text."""
    times = []
    for text in texts:
        started = time.perf_counter()
        model.encode([text])
        times.append(1000 * (time.perf_counter() - started))
    return {"p50": round(statistics.median(times), 2), "p99": round(sorted(times)[int(0.99 * len(times)) - 1], 2)}


FLOOR = """
import click, faiss, numpy, sqlite_utils, torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
Tokenizer.from_file({folder!r} + "/tokenizer.json").encode("which ships sank")
sum(tensor.float().sum() for tensor in load_file({folder!r} + "/model.safetensors").values())
"""


def starts(texts: Sequence[str], model: TextModel) -> dict[str, float]:
    """Seconds from the start of a command to its end, the quickest of some; the floor is the libraries' part of it."""
    with tempfile.TemporaryDirectory() as folder:
        index = str(Path(folder) / "index")
        add_documents(index, (Document(str(n), t) for n, t in enumerate(texts[:50])), model=model)
        search = "import sys; from search.cli import main; sys.argv = ['search', *sys.argv[1:]]; main()"
        commands = {
            "search --help": [sys.executable, "-c", search, "--help"],
            "search query": [sys.executable, "-c", search, "query", index, "which ships sank"],
            "libraries and weights alone": [sys.executable, "-c", FLOOR.format(folder=str(find_backbone(MINILM)))],
        }
        found: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(STARTS):
            for name, command in commands.items():
                started = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True)
                found[name].append(time.perf_counter() - started)
    return {name: round(min(seconds), 2) for name, seconds in found.items()}


def draw(report: Mapping[str, Any], file: Path) -> None:
    """Texts per second of each contender, a panel for each profile."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(report["profiles"]), figsize=(16, 5), sharey=True)
    for axis, (name, profile) in zip(axes, report["profiles"].items(), strict=True):
        rows = profile["contenders"]
        axis.barh(list(rows), [row["texts_per_second"] for row in rows.values()])
        axis.set_title(name)
        axis.set_xlabel("texts per second")
    figure.tight_layout()
    figure.savefig(file)


@click.command()
@click.option("--data", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--peers", metavar="PYTHON", help="With sentence-transformers, as bench_embed_peers.py needs it.")
@click.option("--texts", default=400, show_default=True, help="Of 30 tokens; twice as many short, a quarter long.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--threads", type=int, help="Of torch. Default: its own choice.")
@click.option("--json", "json_file", type=click.Path(path_type=Path))
@click.option("--picture", type=click.Path(path_type=Path), help="Needs matplotlib.")
def main(
    data: Path,
    peers: str | None,
    texts: int,
    rounds: int,
    threads: int | None,
    json_file: Path | None,
    picture: Path | None,
) -> None:
    """Measure everything; print it, and keep it as JSON."""
    if threads and peers:
        raise click.UsageError("--threads does not reach the processes of --peers: leave one of them out")
    if threads:
        torch.set_num_threads(threads)
    bf16 = native_bf16(torch.device("cpu"))
    exact = TextModel.load(device="cpu")
    fast = TextModel.load(device="cpu", precision="bf16") if bf16 else None
    contenders = [*own(exact, fast), *separate_models()]
    if peers:
        contenders += sentence_transformers(peers, bf16)
    rates = {"fp32": multiply_rate(torch.float32), **({"bf16": multiply_rate(torch.bfloat16)} if bf16 else {})}
    report: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "native_bf16": bf16,
        "torch": torch.__version__,
        "multiply_gflops": {name: round(rate / 1e9, 1) for name, rate in rates.items()},
        "profiles": {},
    }
    drawn = profiles(data, texts)
    for name, own_texts in drawn.items():
        profile = report["profiles"][name] = measure(name, own_texts, contenders, exact, rounds)
        for precision, rate in rates.items():
            alone = next(one for one in contenders if one.name == f"tagdex, embedding alone, {precision}")
            share = linear_work(exact, own_texts) / alone.median / rate
            profile[f"share_of_multiply_rate_{precision}"] = round(share, 3)
            click.echo(f"  linear layers at {share:.0%} of the rate of the machine's own {precision} product")
        for peer, cosines in peer_quality(contenders, own_texts):
            profile["contenders"][peer]["mean_cosine"] = float(cosines.mean())
            profile["contenders"][peer]["min_cosine"] = float(cosines.min())
            click.echo(f"  {peer}: cosine to its fp32 {cosines.mean():.6f}, least {cosines.min():.6f}")
        if fast is not None:
            cosines = cosine(exact.encode(own_texts), fast.encode(own_texts))
            changed = changed_tags(exact.analyse(own_texts), fast.analyse(own_texts))
            profile["bf16"] = {
                "mean_cosine": float(cosines.mean()),
                "min_cosine": float(cosines.min()),
                "texts_with_other_tags": changed,
            }
            click.echo(
                f"  bf16: cosine to fp32 {cosines.mean():.6f}, least {cosines.min():.6f}; other tags {changed:.1%}"
            )
    report["one_query_ms"] = one_query(exact, drawn["12 tokens"][:QUERIES])
    report["start_s"] = starts(drawn["30 tokens"], exact)
    click.echo(f"\none query, ms: {report['one_query_ms']}\nstart, s: {report['start_s']}")
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if picture is not None:
        draw(report, picture)


if __name__ == "__main__":
    main()
