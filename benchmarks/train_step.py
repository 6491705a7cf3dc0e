"""Time of one sandwich step: slices of the shared weights against zero masks on the full model.

Both train the same four sub-networks (largest, smallest, two random ones of the medium space) on the same batch, with
one backward pass each and one optimizer step; the two ways alternate, and the ratio of each pair counts.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification

from hf_nas import SizeTable, SubNetwork, SuperNetwork
from hf_nas.files import write_json
from hf_nas.gates import Gates, binary_gates
from hf_nas.space import get_sampler, get_search_space


MODELS = {
    "minilm": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "bert-base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
}


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call: on the CPU those of this process, which other programs on the machine do not lengthen."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def measure(name: str, arguments: argparse.Namespace) -> dict[str, float | str]:
    """Measure one model size."""
    device = torch.device(arguments.device)
    torch.manual_seed(arguments.seed)
    config = BertConfig(**MODELS[name], num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = BertForSequenceClassification(config).to(device).train()
    table = SizeTable(model)
    space = get_search_space("medium", table.structure)
    generator = np.random.default_rng(arguments.seed)
    sampler = get_sampler(arguments.sampling, space, table.parameters)
    randoms = [space.decode(sampler.sample(generator)) for _ in range(2)]
    passes: list[SubNetwork] = [space.smallest, *randoms, space.largest]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    batch = {
        "input_ids": torch.randint(1000, 20000, (arguments.batch_size, arguments.length), device=device),
        "attention_mask": torch.ones(arguments.batch_size, arguments.length, dtype=torch.long, device=device),
        "labels": torch.randint(0, 2, (arguments.batch_size,), device=device),
    }

    def train() -> None:
        model(**batch).loss.backward()

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad()

    def masks() -> None:
        for sub_network in passes:
            with Gates(model, binary_gates(table.structure, sub_network)):
                train()
        update()

    activation: list[float] = []

    def slices() -> None:
        with_time = 0.0
        for sub_network in passes:
            start = time.perf_counter()
            super_network.activate(sub_network)
            with_time += time.perf_counter() - start
            train()
        update()
        activation.append(with_time)

    times: dict[str, list[float]] = {"masks": [], "slices": []}
    for round_number in range(arguments.rounds + 1):
        masked = seconds(masks, device)
        super_network = SuperNetwork(model)
        sliced = seconds(slices, device)
        super_network.detach()
        if round_number:  # the first round warms up
            times["masks"].append(masked)
            times["slices"].append(sliced)
    full = table.macs(space.largest, arguments.length)
    work = sum(table.macs(sub_network, arguments.length) for sub_network in passes)
    bound = len(passes) * full / work
    speedup = statistics.median(m / s for m, s in zip(times["masks"], times["slices"]))
    return {
        "model": name,
        "masks_seconds": statistics.median(times["masks"]),
        "slices_seconds": statistics.median(times["slices"]),
        "speedup": speedup,
        "flop_bound": bound,
        "share_of_bound": speedup / bound,
        "activation_share": statistics.median(activation) / statistics.median(times["slices"]),
        "random_sizes": " ".join(f"{table.macs(r, arguments.length) / full:.2f}" for r in randoms),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), default=["minilm", "bert-base"])
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--length", type=int, default=64, help="tokens a sequence")
    parser.add_argument("--rounds", type=int, default=5, help="counted pairs, after one that warms up")
    parser.add_argument("--sampling", choices=["published", "stratified"], default="published")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=None, help="write the numbers here as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = [measure(name, arguments) for name in arguments.models]
    clock = "process CPU seconds" if arguments.device == "cpu" else "seconds"
    print(f"sandwich step, batch {arguments.batch_size} x {arguments.length}, {arguments.device}, {clock}, medians")
    print(
        f"{'model':10} {'masks s':>9} {'slices s':>9} {'speed-up':>9} {'bound':>6} {'reached':>8} {'activation':>11}"
    )
    for row in rows:
        print(
            f"{row['model']:10} {row['masks_seconds']:9.3f} {row['slices_seconds']:9.3f} {row['speedup']:8.2f}x "
            f"{row['flop_bound']:5.2f}x {row['share_of_bound']:8.0%} {row['activation_share']:11.3%}"
        )
    if arguments.output is not None:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(arguments).items()}
        write_json(arguments.output, json.loads(json.dumps({"arguments": settings, "rows": rows})))


if __name__ == "__main__":
    main()
