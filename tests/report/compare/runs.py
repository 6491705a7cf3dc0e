"""Output folders of runs on one task, as the scripts leave them, and comparisons of them and by hand."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from hf_nas import SizeTable, SubNetwork, describe, extract, save_extracted
from hf_nas.files import write_json
from hf_nas.report import (
    ComparedModel,
    Comparison,
    DenseModel,
    RelativeSizes,
    SearchOutcome,
    compare_runs,
    hand_over,
    read_run,
)
from hf_nas.search import Evaluated, SearchResult
from hf_nas.space import get_search_space
from tests import zoo


def record(folder: Path, seed: int = 0, finished: bool = True, **changes: Any) -> None:
    """What a script records of a run before it trains."""
    arguments = {
        "model_name_or_path": "some/base", "task_name": "mrpc", "data_dir": "data/mrpc", "max_seq_length": 16,
        "seed": seed, **changes,
    }  # fmt: skip
    write_json(folder / "run.json", {"arguments": arguments, "finished": finished})


def results(folder: Path, examples: int | None = 40, **metrics: float) -> None:
    """What `--do_eval` leaves."""
    found = {f"eval_{name}": value for name, value in metrics.items()}
    found |= {"epoch": 1.0, "eval_runtime": 0.5, "eval_samples_per_second": 80.0}
    write_json(folder / "eval_results.json", found if examples is None else {**found, "eval_samples": examples})


def heads_of(model: PreTrainedModel, count: int) -> SubNetwork:
    """The sub-network with so many heads in all, the first ones."""
    kept = {}
    for row in describe(model):
        if row.layout.is_attention:
            kept[row.name] = min(row.units, count)
            count -= kept[row.name]
    return SubNetwork.of(describe(model), kept)


def dense_run(folder: Path, model: PreTrainedModel, seed: int = 0, **metrics: float) -> Path:
    """Plain fine-tuning."""
    model.save_pretrained(folder)
    record(folder, seed)
    results(folder, **metrics)
    return folder


def dsp_run(
    folder: Path, model: PreTrainedModel, heads: int, seed: int = 0, finetuned: bool = False, **metrics: float
) -> Path:
    """Heads pruned to a number by trained gates, with a fine-tuning after it or without."""
    sub_network, table = heads_of(model, heads), SizeTable(model)
    report = {
        "format": "hf_nas.pruning/1",
        "method": "dsp",
        "settings": {"num_of_heads": heads, "annealing": True, "use_ste": False, "l0_penalty": None},
        "heads": heads,
        "parameters": table.parameters(sub_network),
    }
    for name in ("pruned", "finetuned")[: 1 + finetuned]:
        save_extracted(extract(model, sub_network), sub_network, folder / name)
        write_json(folder / name / "pruning.json", report)
    if finetuned:
        record(folder / "finetuned", seed)
        results(folder / "pruned", **{name: value - 0.1 for name, value in metrics.items()})
    record(folder, seed, finished=False)
    results(folder, **metrics)
    return folder


def michel_run(folder: Path, model: PreTrainedModel, scores: dict[int, float], seed: int = 0) -> Path:
    """The front of heads by importance: the last ones go first."""
    table = SizeTable(model)
    rows = [row for row in describe(model) if row.layout.is_attention]
    removed = [(row.name, unit) for row in reversed(rows) for unit in reversed(range(row.units))]
    points = []
    for heads, score in scores.items():
        sub_network = heads_of(model, heads)
        sizes = {"parameters": table.parameters(sub_network), "macs": table.macs(sub_network, 16)}
        points.append({"heads": heads, **sizes, "eval_f1": score, "eval_loss": 1.0})
    front = {"format": "hf_nas.head_front/1", "method": "michel", "heads_per_step": 4, "removed": removed}
    write_json(folder / "front.json", {**front, "points": points})
    smallest = heads_of(model, min(scores))
    save_extracted(extract(model, smallest), smallest, folder / "pruned")
    record(folder / "pruning", seed)
    results(folder, f1=scores[min(scores)])
    return folder


def search_run(
    folder: Path, model: PreTrainedModel, scores: dict[str, float], seed: int = 0, chosen_accuracy: float = 0.7
) -> SearchOutcome:
    """A search over corner cases by name, with their F1 on the validation set."""
    cases, table = zoo.corner_cases(model), SizeTable(model)
    sizes = RelativeSizes(table, 9)
    trials = tuple(
        Evaluated(cases[name], (place,), {"f1": 0.9 * score}, (1 - score, sizes.params_ratio(cases[name])))
        for place, (name, score) in enumerate(scores.items())
    )
    reported = {index: {"f1": score, "accuracy": chosen_accuracy} for index, score in enumerate(scores.values())}
    model.save_pretrained(folder)
    record(folder, seed, sampling_strategy="sandwich")
    results(folder, f1=0.5)
    return hand_over(
        SearchResult(trials, ("error", "parameters"), (1.0, 1.05), seed=seed),
        folder,
        sizes=sizes,
        metric_name="f1",
        largest=get_search_space("small", describe(model)).largest,
        limits={"max_params_ratio": 0.9},
        report=lambda indices: {"validation": {index: reported[index] for index in indices}},
        save_model=lambda index, path: save_extracted(
            extract(model, trials[index].sub_network), trials[index].sub_network, path
        ),
    )


def compared(*runs: tuple[str, Path], **options: Any) -> Comparison:
    """The comparison of folders by label."""
    return compare_runs([read_run(*run) for run in runs], **options)


def make_page(**changes) -> Comparison:
    """Two methods, one with two seeds, by hand."""

    def row(label: str, seed: int, heads: int, metric: float, is_dense: bool = False) -> ComparedModel:
        parameters, macs = 1_000_000 + 100_000 * heads, 10_000_000 * heads
        shares = heads / 10, parameters / 2_000_000, macs / 100_000_000
        return ComparedModel(
            label, seed, heads, shares[0], parameters, shares[1], macs, shares[2], metric, f"{heads} heads",
            f"runs/{label}-{heads}-{seed}", is_dense,
        )  # fmt: skip

    rows = (
        row("dsp", 0, 8, 0.8), row("dsp", 1, 8, 0.7), row("dsp", 0, 4, 0.6), row("voita", 0, 4, 0.5),
        row("dense", 0, 10, 0.9, True), row("dense", 1, 10, 0.8, True),
    )  # fmt: skip
    values = {
        "rows": rows, "dense": DenseModel(10, 2_000_000, 100_000_000, (0.9, 0.8)), "metric_name": "f1",
        "greater_is_better": True, "sequence_length": 128, "task": "mrpc", **changes,
    }  # fmt: skip
    return Comparison(**values)
