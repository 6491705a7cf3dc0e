"""Sub-networks evaluated per second: slices and batches sorted by length, against masks and fixed padding.

Both compute the same metric of the same sub-networks on the same examples, whose lengths are drawn like those of
sentence pairs; the two ways alternate, sub-network by sub-network.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from train_step import MODELS
from transformers import BertConfig, BertForSequenceClassification, EvalPrediction

from hf_nas import SizeTable, SuperNetwork
from hf_nas.files import write_json
from hf_nas.gates import Gates, binary_gates
from hf_nas.search import SuperNetworkEvaluator
from hf_nas.space import get_sampler, get_search_space


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Accuracy, and the mean of the largest logit, which tells different functions apart where accuracy does not."""
    return {
        "accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean()),
        "mean_logit": float(prediction.predictions.max(-1).mean()),
    }


def pad(rows: list[dict], length: int | None = None) -> dict[str, torch.Tensor]:
    """Pad rows to `length`, or to the longest of them."""
    length = length or max(len(row["input_ids"]) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for position, row in enumerate(rows):
        ids[position, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
        mask[position, : len(row["input_ids"])] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([row["labels"] for row in rows])}


def masked_metrics(model, batches: list[dict], gates: dict) -> dict[str, float]:
    """The published way: the full model with zero masks on batches of fixed length."""
    predictions, labels = [], []
    with Gates(model, gates), torch.inference_mode():
        for batch in batches:
            inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
            predictions.append(model(**inputs).logits.float().cpu().numpy())
            labels.append(batch["labels"].cpu().numpy())
    return accuracy(EvalPrediction(np.concatenate(predictions), np.concatenate(labels)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=sorted(MODELS), default="minilm")
    parser.add_argument("--space", default="medium", help="search space")
    parser.add_argument("--sub_networks", type=int, default=12)
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument(
        "--max_length", type=int, default=128, help="the fixed length; true lengths average about half"
    )
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=None, help="write the numbers here as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    model = BertForSequenceClassification(BertConfig(**MODELS[arguments.model])).to(arguments.device).eval()
    generator = np.random.default_rng(arguments.seed)
    lengths = np.clip(generator.normal(0.42, 0.15, arguments.examples), 0.08, 1.0) * arguments.max_length
    rows = [
        {"input_ids": generator.integers(1000, 20000, int(n)).tolist(), "labels": int(generator.integers(2))}
        for n in lengths
    ]
    for row in rows:
        row["attention_mask"] = [1] * len(row["input_ids"])
    batches = [
        {k: v.to(arguments.device) for k, v in pad(rows[i : i + arguments.batch_size], arguments.max_length).items()}
        for i in range(0, len(rows), arguments.batch_size)
    ]
    table = SizeTable(model)
    space = get_search_space(arguments.space, table.structure)
    sampler = get_sampler("stratified", space, table.parameters)
    sub_networks = [space.decode(sampler.sample(generator)) for _ in range(arguments.sub_networks)]
    # On the CPU the seconds of this process, which other programs on the machine do not lengthen.
    clock = time.process_time if arguments.device == "cpu" else time.perf_counter
    times: dict[str, list[float]] = {"masks": [], "slices": []}
    difference = 0.0
    for number, sub_network in enumerate([space.largest, *sub_networks]):
        start = clock()
        masked = masked_metrics(model, batches, binary_gates(table.structure, sub_network))
        masked_seconds = clock() - start
        with SuperNetwork(model) as super_network:
            evaluator = SuperNetworkEvaluator(super_network, rows, pad, accuracy, batch_size=arguments.batch_size)
            start = clock()
            sliced = evaluator(sub_network)
            sliced_seconds = clock() - start
        assert masked["accuracy"] == sliced["accuracy"], "the two ways disagree"
        difference = max(difference, abs(masked["mean_logit"] - sliced["mean_logit"]))
        if number:  # the largest warms up
            times["masks"].append(masked_seconds)
            times["slices"].append(sliced_seconds)
    ratio = statistics.median(m / s for m, s in zip(times["masks"], times["slices"]))
    overall = sum(times["masks"]) / sum(times["slices"])
    print(f"{arguments.sub_networks} sub-networks of {arguments.space}, {len(rows)} examples, {arguments.device}")
    print(f"{'way':8} {'median s':>9} {'nets/s':>8}")
    for way, values in times.items():
        print(f"{way:8} {statistics.median(values):9.3f} {len(values) / sum(values):8.3f}")
    print(f"nets per second: {overall:.2f}x (median of pairs {ratio:.2f}x); same metrics within {difference:.1e}")
    if arguments.output is not None:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(arguments).items()}
        numbers = {"overall": overall, "median_of_pairs": ratio, "logit_difference": difference, "times": times}
        write_json(arguments.output, {"arguments": settings, **numbers})


if __name__ == "__main__":
    main()
