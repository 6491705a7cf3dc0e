"""Speed-up of small models over the dense one in several engines, with what the operations allow beside it.

Models have the size of BERT-base and random weights, on which their speed does not depend. In each engine the dense
and the small ones take turns; compare speed-ups, not the seconds of different engines, which are measured one after
the other. int8 and float32 of OpenVINO take turns as well. What is finished is kept in the file of `--output` and not
measured again.
"""

import argparse
import json
import logging
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from train_step import MODELS
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from hf_nas import SizeTable, SubNetwork, describe, extract
from hf_nas.export import export_model, load_exported, quantize, save_exported, text_inputs
from hf_nas.export.check import TOLERANCE
from hf_nas.export.inputs import input_names
from hf_nas.files import write_json
from hf_nas.profiling import time_interleaved
from hf_nas.structures import ModelStructure


logger = logging.getLogger(__name__)

ENGINES = ("eager", "compile", "onnx", "onnx-fast-norms", "openvino", "openvino-int8")
# Random texts suffice for the ranges of random weights.
_CALIBRATION = 4


def sub_networks(structure: ModelStructure, seed: int = 0) -> dict[str, SubNetwork]:
    """Half of everything, about half with other sizes in every layer, and what is left at about 95 % sparsity."""
    rng = random.Random(seed)

    def uneven(units: int) -> int:
        return max(round(units * rng.uniform(0.2, 0.8)), 1)

    choices = {
        "half": lambda s: s.units // 2,
        "uneven half": lambda s: uneven(s.units),
        "95 % sparse": lambda s: (None if s.layer % 2 else 2) if s.layout.is_attention else s.units // 20,
    }
    return {name: SubNetwork.of(structure, {s.name: choose(s) for s in structure}) for name, choose in choices.items()}


def runnable(engine: str, model: PreTrainedModel, folder: Path, threads: int) -> Callable[..., object]:
    """A model as an engine runs it; exports are kept in a folder.

    Args:
        engine: one of [`ENGINES`].
        model: any model that reads tokens.
        folder: for its export, which is taken from there if it is there.
        threads: of the CPU.
    """
    if engine == "eager":
        return model
    if engine == "compile":
        return torch.compile(model, dynamic=False)
    if not (folder / "export.json").is_file():
        kind = "onnx" if engine.startswith("onnx") else "openvino"
        names = input_names(model)
        exported = export_model(model, kind, names, fast_norms=engine == "onnx-fast-norms")
        tolerance = TOLERANCE
        if engine.endswith("int8"):
            tolerance = None  # integers compute something else
            samples = [text_inputs(model, 1, 32 + 8 * number, names) for number in range(_CALIBRATION)]
            exported = quantize(exported, "int8", samples)
        difference = save_exported(exported, folder, model, names, tolerance=tolerance)
        logger.info("%s differs by %.1e", folder, difference)
    return load_exported(folder, threads=threads)


def measure(
    engine: str, models: dict[str, PreTrainedModel], shape: tuple[int, int], folder: Path, threads: int, repeats: int
) -> dict[str, dict[str, float]]:
    """Median seconds of each model in an engine, and in the one that computes in float32, all measured in turns."""
    inputs = {name: text_inputs(model, *shape, input_names(model)) for name, model in models.items()}
    for given in inputs.values():  # whole sequences, as everywhere
        given["attention_mask"] = torch.ones_like(given["attention_mask"])
    engines = (engine.removesuffix("-int8"), engine) if engine.endswith("-int8") else (engine,)
    calls = {}
    for each in engines:
        for name, model in models.items():
            run = runnable(each, model, folder / f"{name}-{each}", threads)
            calls[each, name] = lambda run=run, given=inputs[name]: run(**given) and None
    clock = time.process_time if threads == 1 else time.perf_counter
    with torch.inference_mode():
        seconds = time_interleaved(
            list(calls.values()), repeats=repeats, clock=clock, description=f"{engine}, {shape[0]} x {shape[1]}"
        )
    found: dict[str, dict[str, float]] = {each: {} for each in engines}
    for (each, name), own in zip(calls, seconds):
        found[each][name] = statistics.median(own)
    return found


def table(rows: list[dict], bounds: dict[str, float]) -> str:
    """Speed-ups over the dense model, in brackets how much of the bound they reach, and what int8 adds to each."""
    lines = [f"{'engine':16} {'batch':>9} {'dense ms':>9}" + "".join(f"{name:>22}" for name in bounds)]
    lines.append(f"{'bound':16} {'':>9} {'':>9}" + "".join(f"{bound:>21.2f}x" for bound in bounds.values()))
    for row in rows:
        seconds = row["seconds"]
        cells = ""
        for name, bound in bounds.items():
            factor = seconds["dense"] / seconds[name]
            cells += f"{f'{factor:.2f}x ({factor / bound:.0%})':>22}"
        lines.append(f"{row['engine']:16} {row['batch']:>9} {1e3 * seconds['dense']:9.1f}{cells}")
        if "float32" in row:
            added = {name: row["float32"][name] / seconds[name] for name in seconds}
            cells = "".join(f"{f'{added[name]:.2f}x':>22}" for name in bounds)
            lines.append(f"{'  int8 adds':16} {row['batch']:>9} {added['dense']:8.2f}x{cells}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="bert-base", choices=list(MODELS), help="size of the dense model")
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES)
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--sequence_length", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=9, help="turns of each model; a third at batches above 8")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True, help="folder for deploy.json and the exports")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    dense = BertForSequenceClassification(BertConfig(**MODELS[arguments.model])).eval()
    networks, sizes = sub_networks(describe(dense)), SizeTable(dense)
    full = sizes.macs(SubNetwork.full(sizes.structure), arguments.sequence_length, None)
    bounds = {name: full / sizes.macs(each, arguments.sequence_length, None) for name, each in networks.items()}
    models = {"dense": dense, **{name: extract(dense, each) for name, each in networks.items()}}

    path = arguments.output / "deploy.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    settings = {name: getattr(arguments, name) for name in ("model", "sequence_length", "threads")}
    for engine in arguments.engines:
        for batch_size in arguments.batch_sizes:
            shape = (batch_size, arguments.sequence_length)
            key = {"engine": engine, "batch": f"{shape[0]} x {shape[1]}", **settings}
            if any(key.items() <= row.items() for row in rows):
                continue
            repeats = arguments.repeats if batch_size <= 8 else max(arguments.repeats // 3, 3)
            folder = arguments.output / "exports" / arguments.model
            found = measure(engine, models, shape, folder, arguments.threads, repeats)
            rows.append({**key, "seconds": found.pop(engine)})
            if found:
                rows[-1]["float32"] = found.popitem()[1]
            write_json(path, {"bounds": bounds, "rows": rows})
            print(table(rows[-1:], bounds), flush=True)
    print(table(rows, bounds))


if __name__ == "__main__":
    main()
