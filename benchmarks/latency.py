"""Error of the latency table on networks it never saw: random ones of all sizes, and extremes.

The networks are really extracted and measured in turns with the full one. The last column is the error of the ratio of
the operations, where that is taken for the ratio of the latencies.
"""

import argparse
import logging
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from train_step import MODELS
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from hf_nas import SizeTable, SubNetwork, extract
from hf_nas.extraction.stored_models import load_model
from hf_nas.files import write_json
from hf_nas.profiling import LatencyTable
from hf_nas.space import get_sampler, get_search_space
from hf_nas.structures import ModelStructure


def extremes(structure: ModelStructure) -> dict[str, SubNetwork]:
    """Networks at the ends, where operations mislead most."""
    attentions = {s.name for s in structure if s.layout.is_attention}

    def of(attention, feed_forward) -> SubNetwork:
        choose = {s.name: (attention if s.name in attentions else feed_forward)(s) for s in structure}
        return SubNetwork.of(structure, choose)

    return {
        "one head, one neuron": of(lambda s: 1, lambda s: 1),
        "no attention": of(lambda s: None, lambda s: s.units),
        "no feed-forward": of(lambda s: s.units, lambda s: None),
        "first layer only": of(*[lambda s: s.units if s.layer == 0 else None] * 2),
        "two or no heads, 5 %": of(
            lambda s: None if s.layer % 2 else min(2, s.units), lambda s: max(s.units // 20, 1)
        ),
        "a quarter everywhere": of(*[lambda s: max(s.units // 4, 1)] * 2),
        "every second layer": of(*[lambda s: None if s.layer % 2 else s.units] * 2),
        "no layer": of(lambda s: None, lambda s: None),
    }


def load(arguments: argparse.Namespace) -> PreTrainedModel:
    """A model by folder, or one of a published size with random weights."""
    if arguments.model not in MODELS:
        return load_model(arguments.model)
    torch.manual_seed(arguments.seed)
    return BertForSequenceClassification(BertConfig(**MODELS[arguments.model])).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="minilm", help=f"{' or '.join(MODELS)} (random weights), or a folder")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--sequence_length", type=int, default=128)
    parser.add_argument("--decoder_length", type=int)
    parser.add_argument("--space", default="medium", help="search space from which random networks are drawn")
    parser.add_argument("--networks", type=int, default=12, help="random networks that are checked")
    parser.add_argument("--repeats", type=int, default=20, help="rounds of measurements of the table and of the check")
    parser.add_argument("--widths", type=int, default=8, help="widths of each kind of sub-layer in the table")
    parser.add_argument("--fitted", type=int, default=12, help="whole networks the correction is fitted on")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=None, help="write the numbers here as JSON")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments.threads)
    model = load(arguments).to(arguments.device, getattr(torch, arguments.dtype)).eval()
    sizes = SizeTable(model)
    # With one thread the seconds of this process, which other programs on the machine lengthen less.
    alone = model.device.type == "cpu" and arguments.threads == 1
    clock = time.process_time if alone else time.perf_counter

    start = time.perf_counter()
    table = LatencyTable.measure(
        model,
        arguments.batch_size,
        arguments.sequence_length,
        decoder_length=arguments.decoder_length,
        widths=arguments.widths,
        num_networks=arguments.fitted,
        repeats=arguments.repeats,
        clock=clock,
    )
    seconds = time.perf_counter() - start
    space = get_search_space(arguments.space, sizes.structure)
    sampler, rng = get_sampler("stratified", space, sizes.parameters), np.random.default_rng(arguments.seed)
    networks = {f"random {i}": space.decode(sampler.sample(rng)) for i in range(arguments.networks)}
    networks |= extremes(sizes.structure)
    errors = table.check(model, list(networks.values()), repeats=arguments.repeats, build=extract, clock=clock)

    lengths = (arguments.sequence_length, arguments.decoder_length)
    full_macs = sizes.macs(SubNetwork.full(sizes.structure), *lengths)
    rows = []
    for name, error in zip(networks, errors):
        macs = sizes.macs(error.sub_network, *lengths) / full_macs
        measured = error.measured / error.full_measured
        rows.append(
            {
                "network": name, "macs": macs, "latency": measured, "milliseconds": 1e3 * error.measured,
                "error": error.error, "error_of_ratio": error.error_of_ratio, "macs_error": macs / measured - 1,
            }
        )  # fmt: skip
    start = time.perf_counter()
    for sub_network in list(networks.values()) * 20:
        table.predict(sub_network)
    prediction = (time.perf_counter() - start) / (20 * len(networks))

    print(f"{arguments.model}, batch {arguments.batch_size}, {arguments.sequence_length} tokens")
    print(table.settings["machine"])
    print(f"table measured in {seconds:.0f} s; a prediction takes {1e6 * prediction:.0f} us")
    print(f"{'network':22} {'MACs':>7} {'latency':>8} {'ms':>9} {'error':>7} {'of ratio':>9} {'MACs as latency':>16}")
    for row in rows:
        print(
            f"{row['network']:22} {row['macs']:7.3f} {row['latency']:8.3f} {row['milliseconds']:9.2f} "
            f"{row['error']:+7.1%} {row['error_of_ratio']:+9.1%} {row['macs_error']:+16.1%}"
        )
    summary = {}
    for key in ("error", "error_of_ratio", "macs_error"):
        values = [abs(row[key]) for row in rows]
        summary[key] = {"median": statistics.median(values), "mean": statistics.mean(values), "max": max(values)}
        print(f"{key:15}", *(f"{name} {value:.1%}" for name, value in summary[key].items()))
    if arguments.output is not None:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(arguments).items()}
        write_json(
            arguments.output,
            {
                "arguments": settings, "summary": summary, "networks": rows, "table": table.to_dict(),
                "seconds_to_measure": seconds, "seconds_to_predict": prediction,
            },
        )  # fmt: skip


if __name__ == "__main__":
    main()
