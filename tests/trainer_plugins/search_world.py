"""Searches that the tests start under torchrun: by both processes together, and by the first one alone.

Usage: torchrun --nproc_per_node=2 -m tests.trainer_plugins.search_world OUTPUT_DIR
"""

import json
import sys
from pathlib import Path

import torch
from transformers import EvalPrediction

from hf_nas.files import write_json
from hf_nas.report import handover
from hf_nas.search.evaluation import Ranks
from tests.trainer_plugins.worlds import rows, trainer
from trainer_plugins import SearchArguments, run_search


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def run(folder: Path, rank: int, fails_at: int | None = None, **settings) -> None:
    counts = {"rows": 0, "passes": 0}

    def take(outputs):
        counts["rows"] += len(outputs.logits)
        counts["passes"] += 1
        if rank == 1 and counts["passes"] == fails_at:
            raise ArithmeticError("this one overflows")
        return outputs.logits

    found: dict = {}
    try:
        outcome = run_search(
            trainer(str(folder), per_device_eval_batch_size=4),
            SearchArguments(do_search=True, num_samples=8, search_strategy="random_search", **settings),
            selection_dataset=rows(64)[:40],
            compute_metrics=accuracy,
            predictions=take,
            report_datasets={"validation": rows(64)[40:]},
            output_dir=folder,
        )
    except ValueError as error:
        found["refused"] = str(error)
    else:
        result = outcome.result.to_dict()
        for trial in result["trials"]:
            del trial["seconds"]
        found["outcome"] = {**result, "table": outcome.table.to_dict(), "metrics": outcome.metrics}
    write_json(folder / f"outcome_{rank}.json", json.loads(json.dumps({**found, **counts})))


def main() -> None:
    output_dir = Path(sys.argv[1])
    cases = {"plain": {}, "raced": {"race": True}, "limited": {"max_params_ratio": 0.6, "max_metric_drop": 0.2}}
    # Pictures take seconds.
    handover.plot_front = handover.plot_progress = lambda *_: None
    trainer(str(output_dir))  # which starts torch.distributed
    rank = torch.distributed.get_rank()
    for name, settings in cases.items():
        run(output_dir / name, rank, **settings)
    run(output_dir / "refused", rank, min_metric=1.5)
    run(output_dir / "failing", rank, fails_at=8)
    if rank == 0:
        of_torch, Ranks.of_torch = Ranks.of_torch, Ranks
        for name, settings in cases.items():
            run(output_dir / name / "alone", 0, **settings)
        Ranks.of_torch = of_torch
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
