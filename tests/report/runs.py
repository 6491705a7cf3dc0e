"""Finished runs of tiny models, made without a training: a search that handed over, and a pruning."""

import json
from dataclasses import replace
from pathlib import Path

from hf_nas import SubNetwork, describe
from hf_nas.extraction import extract, save_extracted
from hf_nas.files import write_json
from hf_nas.profiling import SizeTable
from hf_nas.report import RelativeSizes, hand_over, handover
from hf_nas.search import Evaluated, SearchResult
from hf_nas.space import get_search_space
from tests import zoo


LENGTH = 8
ARGUMENTS = {
    "model_name_or_path": "somebody/some-bert", "task_name": "mrpc", "learning_rate": 1e-4, "seed": 0,
    "selection_split": 0.15, "sampling_strategy": "sandwich", "importance": "magnitude", "train_file": None,
}  # fmt: skip


def log(steps: int = 5) -> list[dict]:
    """What a training logs."""
    entries = [{"epoch": step / 2, "step": step, "loss": 1 / step, "learning_rate": 0.1} for step in range(1, steps)]
    entries += [{"step": step, "eval_loss": 2 / step, "eval_f1": step / 10, "eval_runtime": 9.0} for step in (2, 4)]
    return [*entries, {"step": steps, "train_loss": 0.5, "total_flos": 1e9}]


def search_result(model, sizes: RelativeSizes, metric: str = "f1") -> SearchResult:
    """Largest, smallest, two between, and one that was given up."""
    space = get_search_space("small", describe(model))
    depth, heads, neurons = (len(dimension.choices) - 1 for dimension in space.dimensions)
    encodings = [space.largest_encoding, space.smallest_encoding, (depth, heads, neurons // 2), (depth, 0, 0)]
    encodings.append((1, 0, 0))
    trials = []
    for encoding, value in zip(encodings, (0.9, 0.4, 0.8, 0.3, 0.95)):
        sub_network = space.decode(encoding)
        costs = (1 - value, sizes.params_ratio(sub_network))
        metrics = {metric: value, f"combined_{metric}": value / 2}
        trials.append(Evaluated(sub_network, encoding, metrics, costs, 0.1))
    trials[4] = replace(trials[4], rejected=True)
    return SearchResult(tuple(trials), ("error", "parameters"), (1.0, 1.05), "random_search", "small")


def make_search(
    folder: Path, monkeypatch=None, metric: str = "f1", arguments: dict | None = None, uneven: bool = False
) -> Path:
    """A search that has ended, as the scripts leave it.

    Args:
        folder: where to.
        monkeypatch: with it no pictures are drawn, which take seconds.
        metric: its name.
        arguments: of the record of the run.
        uneven: whether the chosen model has layers of different size.
    """
    if monkeypatch is not None:
        for name in ("plot_front", "plot_progress"):
            monkeypatch.setattr(handover, name, lambda _, path: Path(path).write_bytes(b"\x89PNG picture"))
    model = zoo.build("bert")
    sizes = RelativeSizes(SizeTable(model), LENGTH)
    result = search_result(model, sizes, metric)
    if uneven:
        sub_network = zoo.corner_cases(model)["everything at once"]
        costs = (result.trials[2].costs[0], sizes.params_ratio(sub_network))
        trials = (*result.trials[:2], replace(result.trials[2], sub_network=sub_network, costs=costs))
        result = replace(result, trials=(*trials, *result.trials[3:]))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "run.json", {"arguments": ARGUMENTS if arguments is None else arguments, "finished": True})
    write_json(folder / "trainer_state.json", {"log_history": log()})
    write_json(folder / "eval_results.json", {"eval_f1": 0.99})

    def save(index: int, target: Path) -> None:
        sub_network = result.trials[index].sub_network
        save_extracted(extract(model, sub_network), sub_network, target)

    hand_over(
        result,
        folder,
        sizes=sizes,
        metric_name=metric,
        largest=result.trials[0].sub_network,
        limits={"min_metric": 0.7},
        report=lambda indices: {
            "validation": {i: {metric: 0.5 + i / 10, f"combined_{metric}": 0.25} for i in indices},
            "second_one": {i: {metric: 0.125} for i in indices},
        },
        save_model=save,
    )
    return folder


def make_pruning(folder: Path, kept: dict | None = None, report: dict | None = None) -> Path:
    """A pruning with a final fine-tuning that has ended, as the scripts leave it."""
    model = zoo.build("bert")
    sub_network = SubNetwork.of(describe(model), kept or {"encoder.0.attention": (0, 2), "encoder.1.feed_forward": 5})
    finetuned = folder / "finetuned"
    save_extracted(extract(model, sub_network), sub_network, finetuned)
    default = {
        "format": "hf_nas.pruning/1", "pruning_type": "structured_heads", "budget": "parameters", "target": 0.5,
        "sparsity": 0.51, "parameters": 10, "dense_parameters": 20,
    }  # fmt: skip
    write_json(finetuned / "pruning.json", default if report is None else report)
    for part in ("pruning", "finetuned"):
        write_json(folder / part / "trainer_state.json", {"log_history": log()})
        write_json(folder / part / "run.json", {"arguments": ARGUMENTS, "finished": True})
    write_json(folder / "eval_results.json", {"eval_f1": 0.75, "eval_loss": 1.0, "eval_samples_per_second": 3.0})
    # What nobody wants pushed.
    (finetuned / "optimizer.pt").write_bytes(b"moments")
    (finetuned / "layer_distillation.safetensors").write_bytes(b"maps")
    (finetuned / "checkpoint-4").mkdir()
    (finetuned / "checkpoint-4" / "model.safetensors").write_bytes(b"older")
    return folder


def read_json(path: Path) -> dict:
    """The content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))
