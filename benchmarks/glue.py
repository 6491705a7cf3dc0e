"""Quality: plain fine-tuning against a super-network and the best sub-network under a budget, over several seeds.

Runs examples/text-classification/run_glue.py once a task, seed and way (plain, or super-network and search) and prints
the validation metric of each: the plainly fine-tuned model, the largest sub-network, and the extracted model, which is
chosen on the selection set among the sub-networks within the budget. Both ways take the same number of epochs; the
plain one also trains on what the other holds out. Finished runs are not repeated, so a killed benchmark continues;
those that were made with other flags are set aside and made again.
"""

import argparse
import csv
import json
from pathlib import Path

from script_runs import add_run_arguments, run_script, spread

from hf_nas.files import write_json


COMMON = (
    "--do_train --do_eval --learning_rate 1e-4 --warmup_steps 0.06 --weight_decay 0.01 --pad_to_max_length False "
    "--train_sampling_strategy group_by_length --per_device_eval_batch_size 64 --save_strategy epoch "
    "--save_total_limit 1 --logging_steps 20 --disable_tqdm True"
)
SEARCH = "--do_search --search_strategy nsga2 --num_samples 50"
TASKS = {
    "mrpc": ("f1", "--num_train_epochs 12 --per_device_train_batch_size 16"),
    "sst2": ("accuracy", "--num_train_epochs 2 --per_device_train_batch_size 16 --max_train_samples 20000"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the benchmarks of super-networks ask for."""
    add_run_arguments(parser)
    parser.add_argument("--tasks", nargs="+", choices=sorted(TASKS), default=sorted(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--strategy", default="sandwich")
    parser.add_argument("--space", default="small")


def run(arguments: argparse.Namespace, task: str, way: str, seed: int) -> Path:
    """Run one way with one seed; its folder."""
    folder = arguments.output_dir / f"{task}-{way}-{seed}"
    flags = f"{COMMON} {TASKS[task][1]} --task_name {task}"
    if way == "super-network":
        flags += f" --sampling_strategy {arguments.strategy} --search_space {arguments.space} {SEARCH}"
        flags += f" --max_params_ratio {arguments.budget}"
    last = "search_results.json" if way == "super-network" else "eval_results.json"
    run_script(arguments, folder, flags, data=arguments.data_root / task, model=arguments.model, seed=seed, last=last)
    return folder


def scores(folder: Path, metric: str) -> dict[str, float]:
    """Metrics on the validation set, in percent, and the size of the chosen model."""
    found = {"full": 100 * json.loads((folder / "eval_results.json").read_text())[f"eval_{metric}"]}
    if (folder / "search_results.json").exists():
        search = json.loads((folder / "search_results.json").read_text())
        found["chosen"] = 100 * search[f"chosen_validation_{metric}"]
        found["chosen_params"] = 100 * search["chosen_params_ratio"]
        with open(folder / "search" / "front.csv", encoding="utf-8") as file:
            found["front"] = sum(row["on_front"] == "1" for row in csv.DictReader(file))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--budget", type=float, default=0.6, help="largest share of the encoder's parameters")
    arguments = parser.parse_args()
    rows = []
    for task in arguments.tasks:
        metric = TASKS[task][0]
        results = {
            way: [scores(run(arguments, task, way, seed), metric) for seed in arguments.seeds]
            for way in ("super-network", "plain")
        }
        rows.append({"task": task, "metric": metric, "seeds": arguments.seeds, **results})
    print(f"{arguments.strategy}, {arguments.space} space, mean and standard deviation over seeds {arguments.seeds}")
    print(f"{'task':6} {'metric':9} {'plain':>13} {'largest':>13} {'chosen':>13} {'encoder parameters':>20}")
    for row in rows:
        nets = row["super-network"]
        columns = [
            spread([each["full"] for each in row["plain"]]),
            spread([each["full"] for each in nets]),
            spread([each["chosen"] for each in nets]),
        ]
        share = spread([each["chosen_params"] for each in nets])
        print(f"{row['task']:6} {row['metric']:9} " + " ".join(f"{c:>13}" for c in columns) + f" {share:>19}%")
    write_json(arguments.output_dir / "results.json", rows)


if __name__ == "__main__":
    main()
