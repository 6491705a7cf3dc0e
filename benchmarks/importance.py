"""Which order of the units makes the best super-network: movement, magnitude, gradient or none, over several seeds.

Runs examples/text-classification/run_glue.py once a task, seed and importance, with the same super-network training
and search, and prints the hypervolume of the front (error against the share of the encoder's parameters), on the
selection set that was searched and on the validation set that was not, and the validation score of what the selection
set says is best within some shares; the hypervolume counts any size alike, also those too small to be of use. Movement
scores cost a training of their own before that. Finished runs are not repeated, so a killed benchmark continues; those
that were made with other flags are set aside and made again.
"""

import argparse
import csv
import json
import math
from pathlib import Path

from glue import COMMON, TASKS, add_arguments
from script_runs import run_script, spread

from hf_nas.files import write_json
from hf_nas.search import hypervolume


ORDERS = ("movement", "magnitude", "gradient", "none")
# Fewer than in glue.py: these are 24 trainings.
EPOCHS = {"mrpc": 4, "sst2": 1}
SEARCH = "--do_search --search_strategy nsga2 --num_samples 30"
# Movement scores are final after these, and are trained for as many again.
MOVEMENT_EPOCHS = {"mrpc": 2.0, "sst2": 0.5}
# Errors are below 1, shares of the parameters at most 1; the full network counts.
REFERENCE = (1.0, 1.05)
# Shares of the parameters within which the best is looked for.
BUDGETS = (0.25, 0.5, 0.75)


def flags(arguments: argparse.Namespace, task: str, order: str) -> str:
    """What this benchmark adds to the flags of a task."""
    warmup = MOVEMENT_EPOCHS[task]
    return (
        f"{COMMON} {TASKS[task][1]} --task_name {task} --sampling_strategy {arguments.strategy} "
        f"--search_space {arguments.space} --num_train_epochs {EPOCHS[task]} {SEARCH} "
        f"--importance {order} --movement_warmup_start_epoch {warmup / 4} --movement_warmup_end_epoch {warmup}"
    )


def scores(folder: Path, task: str) -> dict[str, float]:
    """Hypervolumes of the front, in percent of the most that could be, and scores within budgets, in percent."""
    with open(folder / "search" / "front.csv", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["on_front"] == "1"]
    most = REFERENCE[0] * REFERENCE[1]
    found = {}
    for name in ("metric", "reported"):
        points = [(1 - float(row[name]), float(row["parameters_share"])) for row in rows]
        found[name] = 100 * hypervolume(points, REFERENCE) / most
    for budget in BUDGETS:
        within = [row for row in rows if float(row["parameters_share"]) <= budget]
        best = max(within, key=lambda row: float(row["metric"]), default=None)
        found[str(budget)] = math.nan if best is None else 100 * float(best["reported"])  # a space without such sizes
    found["full"] = 100 * json.loads((folder / "eval_results.json").read_text())[f"eval_{TASKS[task][0]}"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--orders", nargs="+", choices=ORDERS, default=list(ORDERS))
    arguments = parser.parse_args()
    rows = []
    for task in arguments.tasks:
        for order in arguments.orders:
            found = []
            for seed in arguments.seeds:
                folder = arguments.output_dir / f"{task}-{order}-{seed}"
                given = {"data": arguments.data_root / task, "model": arguments.model, "seed": seed}
                run_script(arguments, folder, flags(arguments, task, order), **given, last="search_results.json")
                found.append(scores(folder, task))
            rows.append({"task": task, "importance": order, "seeds": arguments.seeds, "runs": found})
    print(f"{arguments.strategy}, {arguments.space} space, mean and standard deviation over seeds {arguments.seeds}")
    print("hypervolumes in percent of the most that could be; scores on the validation set in percent")
    columns = {"metric": "HV selection", "reported": "HV validation"}
    columns |= {str(budget): f"within {budget:.0%}" for budget in BUDGETS} | {"full": "largest"}
    print(f"{'task':6} {'importance':11} " + " ".join(f"{title:>14}" for title in columns.values()))
    for row in rows:
        found = " ".join(f"{spread([each[name] for each in row['runs']]):>14}" for name in columns)
        print(f"{row['task']:6} {row['importance']:11} {found}")
    write_json(arguments.output_dir / "results.json", rows)


if __name__ == "__main__":
    main()
