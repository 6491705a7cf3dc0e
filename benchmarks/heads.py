"""Pruning of attention heads to given numbers, by all methods that differentiable subset pruning was compared with.

    dense           plain fine-tuning; what pipelined and michel start from
    dsp-joint       differentiable subset pruning, weights and gates trained together from the pretrained model
    dsp-pipelined   the same with the gates alone, on the dense model, in a third of the epochs, as published
    ste             the straight-through variant, weights and gates together
    voita           hard concrete gates with a penalty that multipliers drive to the number, weights and gates together
    michel          importance by gradients on the dense model: one run gives all numbers, and nothing is trained

All scores are of the small model that is extracted, on the validation set, not fine-tuned after it. At the end the
relative claims of the publications are checked against the spread over seeds. Finished runs are not repeated, so a
killed benchmark continues; those that were made with other flags are set aside and made again.
"""

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from script_runs import add_run_arguments, run_script, spread
from tqdm.auto import tqdm
from transformers import AutoConfig

from hf_nas.cli import main as hf_nas
from hf_nas.files import write_json


COMMON = (
    "--do_eval --learning_rate 1e-4 --warmup_steps 0.06 --weight_decay 0.01 --pad_to_max_length False "
    "--train_sampling_strategy group_by_length --per_device_train_batch_size 16 --per_device_eval_batch_size 64 "
    "--save_strategy no --logging_steps 20 --disable_tqdm True"
)
METHODS = {
    "dsp-joint": "--do_train --pruning_method dsp --annealing --joint_pruning",
    "dsp-pipelined": "--do_train --pruning_method dsp --annealing",
    "ste": "--do_train --pruning_method dsp --use_ste --joint_pruning",
    "voita": "--do_train --pruning_method voita --joint_pruning",
    "michel": "--pruning_method michel",
}
FROM_DENSE = ("dsp-pipelined", "michel")
# Epochs of the pipelined method over those of the joint one, as published.
PIPELINED = 1 / 3
# Of all heads, up to which a number of them is a small one.
SMALL = 1 / 3
# Scores by method, then number of heads, then seed.
Scores = Mapping[str, Mapping[int, Sequence[float]]]


@dataclass(frozen=True)
class TaskPlan:
    """A task: its metric, the epochs of a training, and flags of run_glue.py."""

    metric: str
    epochs: float
    rows: int | None = None


TASKS = {"mrpc": TaskPlan("f1", 9), "sst2": TaskPlan("accuracy", 3, rows=20000)}


class Runs:
    """The runs of one task and seed."""

    def __init__(self, arguments: argparse.Namespace, task: str, seed: int):
        self.arguments, self.task, self.seed, self.plan = arguments, task, seed, TASKS[task]
        self.epochs = self.plan.epochs if arguments.epochs is None else arguments.epochs
        self.rows = self.plan.rows if arguments.max_train_samples is None else arguments.max_train_samples

    def folder(self, method: str, heads: int | None = None) -> Path:
        """Of a run."""
        name = method if heads is None else f"{method}-{heads}"
        return self.arguments.output_dir / f"{self.task}-{name}-{self.seed}"

    def _script(self, folder: Path, model: Path | str, flags: str, epochs: float) -> None:
        flags = f"{COMMON} {flags} --task_name {self.task} --num_train_epochs {epochs:g}"
        flags += f" --max_train_samples {self.rows}" if self.rows else ""
        after, data = [model] if model == self.folder("dense") else [], self.arguments.data_root / self.task
        run_script(self.arguments, folder, flags, data=data, model=model, seed=self.seed, after=after)

    def dense(self) -> float:
        """The score of the plainly fine-tuned model, in percent."""
        self._script(self.folder("dense"), self.arguments.model, "--do_train", self.epochs)
        return self._percent(json.loads((self.folder("dense") / "eval_results.json").read_text()))

    def scores(self, method: str, heads: Sequence[int], total: int) -> list[float]:
        """The scores of one method at these numbers of heads, in percent."""
        if method in FROM_DENSE:
            self.dense()
        if method == "michel":
            return self._michel(heads, total)
        return [self.dense() if _is_dense(method, n, total) else self._pruned(method, n) for n in heads]

    def _pruned(self, method: str, heads: int) -> float:
        folder = self.folder(method, heads)
        start = self.folder("dense") if method in FROM_DENSE else self.arguments.model
        epochs = self.epochs * PIPELINED if method in FROM_DENSE else self.epochs
        self._script(folder, start, f"{METHODS[method]} --num_of_heads {heads}", epochs)
        return self._percent(json.loads((folder / "eval_results.json").read_text()))

    def folders(self, method: str, heads: Sequence[int], total: int) -> list[Path]:
        """Of all runs of one method."""
        if method == "michel":
            return [self.folder(method, _step(heads, total))]
        return [self.folder(method, number) for number in heads if not _is_dense(method, number, total)]

    def _michel(self, heads: Sequence[int], total: int) -> list[float]:
        step = _step(heads, total)
        folder = self.folder("michel", step)
        # Of the front, which has all of these numbers, the smallest: the same for any that lead to this step.
        flags = f"{METHODS['michel']} --num_of_heads {total % step or step} --heads_per_step {step}"
        self._script(folder, self.folder("dense"), flags, 1)
        points = {point["heads"]: point for point in json.loads((folder / "front.json").read_text())["points"]}
        return [self._percent(points[number]) for number in heads]

    def _percent(self, results: Mapping[str, float]) -> float:
        return 100 * results[f"eval_{self.plan.metric}"]


def _is_dense(method: str, heads: int, total: int) -> bool:
    """Whether a run would be the dense one, bit for bit: gates with room for all heads are off."""
    return heads == total and method in ("dsp-joint", "dsp-pipelined", "ste")


def _step(heads: Sequence[int], total: int) -> int:
    """The largest step from all heads downwards that meets all these numbers."""
    return math.gcd(*(total - number for number in heads)) or total


@dataclass(frozen=True)
class Claim:
    """What is published of two methods at a number of heads, and what was found.

    Args:
        text: of the claim.
        heads: at which it is checked.
        difference: mean over seeds of the first score minus the second, in points.
        deviation: standard deviation of that over seeds; None of a single seed.
        verdict: "holds", "does not hold", or "within the spread", where a difference against the claim, for ">" any,
            is smaller than its deviation; "not judged" of a single seed.
    """

    text: str
    heads: int
    difference: float
    deviation: float | None
    verdict: str


def check_claims(scores: Scores, dense: Sequence[float], total: int) -> list[Claim]:
    """Check the relative claims that are published, as far as their methods were run.

    Joint DSP is at least as good as the straight-through variant, which is as good as Voita's; pipelined DSP is better
    than Michel's where few heads are left; and all of them reach the dense score when all heads are kept.

    Args:
        scores: by method and number of heads, one a seed.
        dense: scores of the dense model, one a seed.
        total: heads of the model.
    """
    pairs = [("dsp-joint", ">=", "ste", total), ("ste", "=", "voita", total)]
    pairs += [("dsp-joint", ">=", "voita", total), ("dsp-pipelined", ">", "michel", SMALL * total)]
    claims = []
    for first, relation, second, largest in pairs:
        for heads in scores.get(first, {}):
            if heads < total and heads <= largest and heads in scores.get(second, {}):
                text = f"{first} {relation} {second}"
                claims.append(_claim(text, heads, scores[first][heads], relation, scores[second][heads]))
    for method, found in scores.items():
        if total in found:
            claims.append(_claim(f"{method} = dense", total, found[total], "=", dense))
    return claims


def _claim(text: str, heads: int, first: Sequence[float], relation: str, second: Sequence[float]) -> Claim:
    differences = [a - b for a, b in zip(first, second)]
    mean = statistics.fmean(differences)
    deviation = statistics.stdev(differences) if len(differences) > 1 else None
    within = deviation is not None and abs(mean) <= deviation
    if deviation is None:
        verdict = "not judged"
    elif relation == "=":
        verdict = "holds" if within else "does not hold"
    elif relation == ">=":
        verdict = "holds" if mean >= 0 else "within the spread" if within else "does not hold"
    else:
        verdict = "within the spread" if within else "holds" if mean > 0 else "does not hold"
    return Claim(text, heads, mean, deviation, verdict)


def count_heads(model: str) -> int:
    """Attention heads of a pretrained encoder."""
    config = AutoConfig.from_pretrained(model)
    return config.num_hidden_layers * config.num_attention_heads


def parse_heads(given: Sequence[str], total: int) -> list[int]:
    """The numbers of heads, most first; "all" is all of them."""
    try:
        heads = {total if text == "all" else int(text) for text in given}
    except ValueError:
        heads = {0}
    if not all(1 <= number <= total for number in heads):
        raise SystemExit(f"--heads is {' '.join(given)}; give numbers from 1 to {total}, or all.")
    return sorted(heads, reverse=True)


def run_task(arguments: argparse.Namespace, task: str, heads: Sequence[int], total: int) -> dict:
    """All runs of a task: the scores and the claims."""
    runs = [Runs(arguments, task, seed) for seed in arguments.seeds]
    scores: dict[str, dict[int, list[float]]] = {method: {number: [] for number in heads} for method in METHODS}
    dense = []
    for each in tqdm(runs, desc=task, unit="seed"):
        dense.append(each.dense())
        for method in tqdm(arguments.methods, desc=f"seed {each.seed}", unit="method", leave=False):
            for number, score in zip(heads, each.scores(method, heads, total)):
                scores[method][number].append(score)
    scores = {method: scores[method] for method in arguments.methods}
    claims = check_claims(scores, dense, total)
    return {
        "task": task,
        "metric": TASKS[task].metric,
        "seeds": arguments.seeds,
        "epochs": runs[0].epochs,
        "train_rows": runs[0].rows,
        "dense": dense,
        "scores": scores,
        "claims": [vars(claim) for claim in claims],
    }


def show(result: Mapping, heads: Sequence[int]) -> None:
    """Print the table and the claims of a task."""
    rows = f"{result['train_rows']} rows" if result["train_rows"] else "all rows"
    print(f"\n{result['task']}: {result['metric']} in percent, {result['epochs']:g} epochs of {rows}")
    print(f"mean and standard deviation over seeds {result['seeds']}; dense {spread(result['dense']).strip()}")
    print(f"{'heads':14} " + " ".join(f"{number:>13}" for number in heads))
    for method, found in result["scores"].items():
        print(f"{method:14} " + " ".join(f"{spread(found[number]):>13}" for number in heads))
    for claim in result["claims"]:
        deviation = "one seed" if claim["deviation"] is None else f"± {claim['deviation']:.1f}"
        sentence = f"{claim['difference']:+.1f} points ({deviation}): {claim['verdict']}"
        print(f"  {claim['text']:24} at {claim['heads']:>3} heads: {sentence}")


def draw(arguments: argparse.Namespace, task: str, heads: Sequence[int], total: int) -> None:
    """The picture of all runs of a task."""
    runs = [Runs(arguments, task, seed) for seed in arguments.seeds]
    folders = [("dense", each.folder("dense")) for each in runs]
    for method in arguments.methods:
        folders += [(method, folder) for each in runs for folder in each.folders(method, heads, total)]
    if len(folders) == len(runs):  # all heads alone, which is the dense model
        return
    output = arguments.output_dir / f"{task}-comparison"
    hf_nas(["compare", *(f"{label}={folder}" for label, folder in folders), "--output_dir", str(output)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_run_arguments(parser)
    parser.add_argument("--tasks", nargs="+", choices=sorted(TASKS), default=sorted(TASKS))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--heads", nargs="+", default=["all", "36", "24", "12", "6"], help="heads to keep")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, help="of joint and dense trainings, instead of the task's")
    parser.add_argument("--max_train_samples", type=int, help="train on so many rows, instead of the task's")
    arguments = parser.parse_args()
    total = count_heads(arguments.model)
    heads = parse_heads(arguments.heads, total)
    results = []
    for task in arguments.tasks:
        results.append(run_task(arguments, task, heads, total))
        write_json(arguments.output_dir / "results.json", results)
        show(results[-1], heads)
        draw(arguments, task, heads, total)


if __name__ == "__main__":
    main()
