"""Sub-networks evaluated per second in a search, way by way.

    masks    the published way: zero masks on the full model, batches of a fixed length
    slices   the super-network's slices, batches of a fixed length
    sorted   slices, batches sorted by length with dynamic padding
    prefix   sorted, and the leading layers that a candidate shares with earlier ones are reused
    racing   prefix, and candidates that will not reach the front are given up early

A search method proposes the candidates from real evaluations; each is evaluated in all ways, one after the other in
turning order. All ways but racing must return the same metrics. Last, the time around the forward passes is measured.
"""

import argparse
import copy
import statistics
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import load_dataset
from tqdm.auto import tqdm
from train_step import MODELS
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    EvalPrediction,
    PreTrainedModel,
)

from hf_nas import SizeTable, SubNetwork, SuperNetwork
from hf_nas.files import write_json
from hf_nas.gates import Gates, binary_gates
from hf_nas.search import SuperNetworkEvaluator, error_objective, parameters_objective, pareto_indices, search
from hf_nas.search.evaluation import Racing, Rejected
from hf_nas.search.result import Evaluated
from hf_nas.space import get_search_space


WAYS = ("masks", "slices", "sorted", "prefix", "racing")
Rows = list[dict[str, Any]]


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Accuracy, and the mean of the largest logit, which tells different functions apart where accuracy does not."""
    return {
        "accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean()),
        "mean_logit": float(prediction.predictions.max(-1).mean()),
    }


def pad(rows: Rows, length: int | None = None) -> dict[str, torch.Tensor]:
    """Pad rows to `length`, or to the longest of them."""
    length = length or max(len(row["input_ids"]) for row in rows)
    batch = {}
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        if name in rows[0]:
            batch[name] = torch.tensor([row[name] + [0] * (length - len(row[name])) for row in rows])
    return {**batch, "labels": torch.tensor([row["labels"] for row in rows])}


def read_rows(folder: Path | None, tokenizer: Any, arguments: argparse.Namespace) -> Rows:
    """Tokenised validation rows of a GLUE task, or random ones whose lengths are like those of sentence pairs."""
    generator = np.random.default_rng(arguments.seed)
    if folder is None:
        lengths = np.clip(generator.normal(0.42, 0.15, arguments.examples), 0.08, 1.0) * arguments.max_length
        ids = [generator.integers(1000, 20000, int(n)).tolist() for n in lengths]
        return [{"input_ids": i, "attention_mask": [1] * len(i), "labels": int(generator.integers(2))} for i in ids]
    data = load_dataset("parquet", data_files=str(folder / "validation.parquet"), split="train")
    texts = [name for name in ("sentence1", "sentence2", "question", "sentence", "text") if name in data.column_names]
    rows = []
    for row in data.select(range(min(arguments.examples, len(data)))):
        if tokenizer is not None:
            row_inputs = dict(
                tokenizer(*(row[name] for name in texts), truncation=True, max_length=arguments.max_length)
            )
        else:  # words as tokens
            words = " ".join(row[name] for name in texts).split()[: arguments.max_length]
            row_inputs = {"input_ids": [1000 + zlib.crc32(word.encode()) % 19000 for word in words]}
            row_inputs["attention_mask"] = [1] * len(words)
        rows.append({**row_inputs, "labels": int(row["label"])})
    return rows


def teach(model: PreTrainedModel, rows: Rows, generator: np.random.Generator) -> None:
    """Give an untrained model labels that it gets right nine times of ten, so that smaller networks are worse."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        logits = []
        for start in range(0, len(rows), 32):
            batch = {k: v.to(device) for k, v in pad(rows[start : start + 32]).items() if k != "labels"}
            logits.append(model(**batch).logits.float().cpu())
    logits = torch.cat(logits)
    with torch.no_grad():
        model.classifier.bias.sub_(logits.mean(0).to(device))
    flipped = generator.random(len(rows)) < 0.1
    for row, label, flip in zip(rows, (logits - logits.mean(0)).argmax(-1).tolist(), flipped):
        row["labels"] = 1 - label if flip else label


class Masks:
    """The published way: the full model with zero masks on batches of fixed length."""

    def __init__(self, model: PreTrainedModel, table: SizeTable, rows: Rows, batch_size: int, length: int):
        self.model, self.table = copy.deepcopy(model), table
        device = next(model.parameters()).device
        self.batches = [
            {name: tensor.to(device) for name, tensor in pad(rows[start : start + batch_size], length).items()}
            for start in range(0, len(rows), batch_size)
        ]

    def __call__(self, sub_network: SubNetwork) -> dict[str, float]:
        predictions, labels = [], []
        with Gates(self.model, binary_gates(self.table.structure, sub_network)), torch.inference_mode():
            for batch in self.batches:
                inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
                predictions.append(self.model(**inputs).logits.float().cpu().numpy())
                labels.append(batch["labels"].cpu().numpy())
        return accuracy(EvalPrediction(np.concatenate(predictions), np.concatenate(labels)))


class Reuse:
    """The prefix way: keeps near its front, as a search does."""

    def __init__(self, evaluator: SuperNetworkEvaluator, size: Callable[[SubNetwork], float]):
        self.evaluator, self.size = evaluator, size
        self.full: list[Evaluated] = []

    def __call__(self, sub_network: SubNetwork) -> dict[str, float]:
        front = pareto_indices([trial.costs for trial in self.full])
        self.evaluator.keep_near([self.full[index].sub_network for index in front])
        metrics = self.evaluator(sub_network)
        self.full.append(Evaluated(sub_network, (), metrics, (1 - metrics["accuracy"], self.size(sub_network))))
        return metrics


class Race:
    """The racing way, with a front of its own: those that it evaluated fully."""

    def __init__(self, evaluator: SuperNetworkEvaluator, size: Callable[[SubNetwork], float]):
        self.evaluator, self.size = evaluator, size
        self.full: list[Evaluated] = []
        self.rejected: list[SubNetwork] = []
        self.examples = 0

    def __call__(self, sub_network: SubNetwork) -> dict[str, float] | Rejected:
        size = self.size(sub_network)
        front = [self.full[index] for index in pareto_indices([trial.costs for trial in self.full])]
        outcome = self.evaluator.race(sub_network, (size,), front)
        if isinstance(outcome, Rejected):
            self.rejected.append(sub_network)
            self.examples += outcome.examples
        else:
            self.full.append(Evaluated(sub_network, (), outcome, (1 - outcome["accuracy"], size)))
        return outcome


class Contest:
    """Evaluates each candidate in all ways, times them and compares what they return."""

    def __init__(self, ways: Mapping[str, Callable], device: torch.device):
        self.ways, self.device = dict(ways), device
        # On the CPU the seconds of this process, which other programs on the machine do not lengthen.
        self.clock = time.process_time if device.type == "cpu" else time.perf_counter
        self.times: dict[str, list[float]] = {way: [] for way in ways}
        self.difference = 0.0

    def __call__(self, sub_network: SubNetwork) -> dict[str, float]:
        number = len(self.times["sorted"])
        names = list(self.ways)
        outcomes: dict[str, Any] = {}
        for way in names[number % len(names) :] + names[: number % len(names)]:
            start = self.seconds()
            outcomes[way] = self.ways[way](sub_network)
            self.times[way].append(self.seconds() - start)
        expected = outcomes["sorted"]
        if "prefix" in outcomes and outcomes["prefix"] != expected:
            raise SystemExit(f"Reuse changes the metrics of sub-network {number}: {expected}, {outcomes['prefix']}")
        for way, outcome in outcomes.items():
            if isinstance(outcome, Rejected):
                continue
            if outcome["accuracy"] != expected["accuracy"]:
                raise SystemExit(f"{way} changes the accuracy of sub-network {number}: {expected}, {outcome}")
            self.difference = max(self.difference, abs(outcome["mean_logit"] - expected["mean_logit"]))
        return expected

    def seconds(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return self.clock()


def run(method: str, model: PreTrainedModel, rows: Rows, arguments: argparse.Namespace) -> dict[str, Any]:
    """One search, whose candidates are evaluated in all ways."""
    table = SizeTable(model)
    space = get_search_space(arguments.space, table.structure)
    size = parameters_objective(table)
    size_of = lambda sub_network: size.cost(sub_network, {})  # noqa: E731
    masks = Masks(model, table, rows, arguments.batch_size, arguments.max_length)
    cache = {"prefix_cache_bytes": round(arguments.cache_gib * 2**30)}
    with SuperNetwork(model) as super_network:

        def evaluator(collator: Callable = pad, **options: Any) -> SuperNetworkEvaluator:
            options = {"batch_size": arguments.batch_size, "prefix_cache_bytes": 0, **options}
            return SuperNetworkEvaluator(super_network, rows, collator, accuracy, **options)

        reuse = Reuse(evaluator(**cache), size_of)
        racing = Racing(error_probability=arguments.error_probability, seed=arguments.seed)
        race = Race(evaluator(racing=racing, **cache), size_of)
        fixed = evaluator(lambda batch: pad(batch, arguments.max_length))
        ways = {"masks": masks, "slices": fixed, "sorted": evaluator(), "prefix": reuse, "racing": race}
        ways = {way: ways[way] for way in WAYS if way in arguments.ways or way == "sorted"}
        for way in ways.values():  # warm up, with another sub-network than the first of the search
            (way.evaluator if way in (reuse, race) else way)(space.smallest)
        for each in (reuse, race):
            each.evaluator.clear()
        contest = Contest(ways, torch.device(arguments.device))
        reused, computed = reuse.evaluator.reused_layers
        result = search(
            space,
            contest,
            [error_objective("accuracy"), size],
            size=size_of,
            method=method,
            num_samples=arguments.sub_networks,
            seed=arguments.seed,
        )
        reused, computed = (now - then for now, then in zip(reuse.evaluator.reused_layers, (reused, computed)))
    front = {result.trials[index].sub_network for index in result.pareto}
    numbers: dict[str, Any] = {"times": contest.times, "mean_logit_difference": contest.difference}
    if "prefix" in ways:
        numbers["reused_layers"] = reused / max(reused + computed, 1)
    if "racing" in ways:
        count = len(result.trials)
        examples = race.examples + len(race.full) * len(rows)
        numbers["rejected"] = len(race.rejected) / count
        numbers["examples_evaluated"] = examples / (count * len(rows))
        numbers["front"] = len(front)
        numbers["front_rejected"] = len(front & set(race.rejected))
    report(method, contest.times, numbers)
    return numbers


def report(method: str, times: Mapping[str, list[float]], numbers: dict[str, Any]) -> None:
    """Print the table of one search and add its columns to the numbers."""
    first = next(iter(times))
    print(f"\n{method}, {len(times[first])} sub-networks")
    print(f"{'way':8} {'median s':>9} {'nets/s':>8} {'x ' + first:>9} {'median x':>9}")
    numbers["ways"] = {}
    for way, values in times.items():
        ratio = statistics.median(other / own for other, own in zip(times[first], values))
        row = {
            "median_seconds": statistics.median(values),
            "per_second": len(values) / sum(values),
            "overall_ratio": sum(times[first]) / sum(values),
            "median_ratio": ratio,
        }
        numbers["ways"][way] = row
        print(
            f"{way:8} {row['median_seconds']:9.3f} {row['per_second']:8.3f} {row['overall_ratio']:9.2f} "
            f"{row['median_ratio']:9.2f}"
        )
    print(f"same accuracies; mean logits within {numbers['mean_logit_difference']:.1e}")
    if "reused_layers" in numbers:
        print(f"prefix: {numbers['reused_layers']:.0%} of the layers reused")
    if "rejected" in numbers:
        print(
            f"racing: {numbers['rejected']:.0%} rejected, {numbers['examples_evaluated']:.0%} of the examples "
            f"evaluated, {numbers['front_rejected']} of {numbers['front']} on the front lost"
        )


def overhead(rows: Rows, arguments: argparse.Namespace) -> float:
    """Median milliseconds that an evaluation takes longer than its bare forward passes, for a tiny model."""
    config = BertConfig(hidden_size=32, num_hidden_layers=12, num_attention_heads=4, intermediate_size=32)
    model = BertForSequenceClassification(config).to(arguments.device).eval()
    generator = np.random.default_rng(arguments.seed)
    ways: dict[str, list[float]] = {"evaluator": [], "bare": []}
    with SuperNetwork(model) as super_network:
        space = get_search_space(arguments.space, super_network.structure)
        batches = [
            {
                k: v.to(arguments.device)
                for k, v in pad(rows[i : i + arguments.batch_size], 32).items()
                if k != "labels"
            }
            for i in range(0, len(rows), arguments.batch_size)
        ]
        evaluator = SuperNetworkEvaluator(
            super_network, rows, lambda batch: pad(batch, 32), accuracy, batch_size=arguments.batch_size
        )
        contest = Contest({"sorted": evaluator}, torch.device(arguments.device))
        for _ in tqdm(range(20), desc="Overhead", unit="net"):
            sub_network = space.decode(space.sample(generator))
            start = contest.seconds()
            with super_network.activated(sub_network), torch.inference_mode():
                for batch in batches:
                    model(**batch)
            middle = contest.seconds()
            evaluator.clear()
            evaluator(sub_network)
            ways["bare"].append(middle - start)
            ways["evaluator"].append(contest.seconds() - middle)
    return 1000 * statistics.median(own - bare for own, bare in zip(ways["evaluator"], ways["bare"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(MODELS), default="minilm", help="size of an untrained model")
    parser.add_argument(
        "--checkpoint", default=None, help="a trained super-network instead, with its tokenizer: a folder or a name"
    )
    parser.add_argument(
        "--data", type=Path, default=None, help="folder with validation.parquet of a GLUE task; by default random rows"
    )
    parser.add_argument("--space", default="medium", help="search space")
    parser.add_argument("--methods", nargs="+", default=["nsga2", "local_search"], help="search methods")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="'sorted' is always there")
    parser.add_argument("--sub_networks", type=int, default=60)
    parser.add_argument("--examples", type=int, default=408)
    parser.add_argument("--max_length", type=int, default=128, help="the fixed length")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--cache_gib", type=float, default=1.0, help="bound of the prefix cache")
    parser.add_argument("--error_probability", type=float, default=0.05, help="of racing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=None, help="write the numbers here as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    if arguments.checkpoint is None:
        tokenizer = None
        model = BertForSequenceClassification(BertConfig(**MODELS[arguments.model]))
    else:
        tokenizer = AutoTokenizer.from_pretrained(arguments.checkpoint)
        model = AutoModelForSequenceClassification.from_pretrained(arguments.checkpoint)
    model = model.to(arguments.device).eval()
    rows = read_rows(arguments.data, tokenizer, arguments)
    if arguments.checkpoint is None:
        teach(model, rows, np.random.default_rng(arguments.seed))
    tokens = statistics.mean(len(row["input_ids"]) for row in rows)
    print(f"{arguments.space} space, {len(rows)} examples of {tokens:.0f} tokens on average, {arguments.device}")
    numbers = {method: run(method, model, rows, arguments) for method in arguments.methods}
    around = overhead([{**row, **{k: v[:32] for k, v in row.items() if k != "labels"}} for row in rows], arguments)
    print(f"\naround the forward passes: {around:.1f} ms a sub-network")
    if arguments.output is not None:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(arguments).items()}
        write_json(arguments.output, {"arguments": settings, "methods": numbers, "overhead_milliseconds": around})


if __name__ == "__main__":
    main()
