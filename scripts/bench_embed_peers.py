"""One setting of sentence-transformers in a process of its own: `bench_embed.py --peers PYTHON` asks it.

    PYTHON scripts/bench_embed_peers.py SETTING MODEL_FOLDER

`PYTHON` is an interpreter with `sentence-transformers[onnx,openvino]`, which needs other versions than tagdex does.
Every line on stdin is a JSON list of texts, or of texts and a file; the answer, a line on stdout, is "done", and the
file holds their embeddings, fp32 (texts, width). The settings are those of the chapter on efficiency in the
documentation of sentence-transformers. Its int8 for OpenVINO is not among them: it is calibrated on a data set that is
downloaded.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Pooling, Transformer

SETTINGS = ("torch", "torch-bf16", "onnx", "onnx-int8", "openvino")
MAX_TOKENS = 256


def assemble(folder: str, **options: Any) -> SentenceTransformer:
    """The model of a folder that holds the encoder alone: mean of its tokens."""
    transformer = Transformer(folder, max_seq_length=MAX_TOKENS, **options)
    return SentenceTransformer(modules=[transformer, Pooling(transformer.get_word_embedding_dimension())], device="cpu")


def load(setting: str, folder: str, scratch: Path) -> SentenceTransformer:
    """The model in one of `SETTINGS`."""
    backend, _, variant = setting.partition("-")
    if backend == "torch":
        model = assemble(folder)
        return model.bfloat16() if variant else model
    model = assemble(folder, backend=backend, model_args={"export": True})
    if not variant:
        return model
    from sentence_transformers import export_dynamic_quantized_onnx_model

    model.save_pretrained(str(scratch))
    export_dynamic_quantized_onnx_model(model, "avx2", str(scratch))
    (file,) = (scratch / "onnx").glob("*int8*.onnx")
    return SentenceTransformer(
        str(scratch), backend="onnx", device="cpu", model_kwargs={"file_name": f"onnx/{file.name}"}
    )


def main() -> None:
    """Answer until stdin ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    with tempfile.TemporaryDirectory() as scratch:
        model = load(sys.argv[1], sys.argv[2], Path(scratch))
        print("ready", file=answers, flush=True)
        for line in sys.stdin:
            texts, file = json.loads(line)
            found = model.encode(texts, convert_to_tensor=True).float().numpy()
            if file is not None:
                np.save(file, found)
            print("done", file=answers, flush=True)


if __name__ == "__main__":
    main()
