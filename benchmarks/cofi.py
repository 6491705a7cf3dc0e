"""Quality and speed of CoFi pruning at given sparsities, against simpler ways to the same size.

    dense       plain fine-tuning; also the teacher of all others
    cofi        training with gates, projection to the target, fine-tuning of the small model
    layers      the upper layers dropped, and the highest that stays narrowed so that the size is that of cofi
    magnitude   the heads and neurons of smallest magnitude pruned from all layers alike, down to the size of cofi

The last two start from the fine-tuned model, as cofi does unless told otherwise, and are trained for as many epochs as
cofi in all, with the same teacher, losses and largest learning rate, which falls to nothing (twice in cofi: in the
pruning, and in the fine-tuning after it, on SST-2 from a smaller one). All sizes are the weights of attention and
feed-forward networks. The speed-up over the dense model is what `hf-nas evaluate` measures. Finished runs are not
repeated, so a killed benchmark continues; those that were made with other flags are set aside and made again.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from script_runs import add_run_arguments, keep_same, run_script, spread
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from hf_nas import SubNetwork, describe, extract, reorder, save_extracted
from hf_nas.files import write_json
from hf_nas.importance import magnitude
from hf_nas.profiling import parameter_costs


COMMON = (
    "--do_train --do_eval --learning_rate 1e-4 --warmup_steps 0.06 --weight_decay 0.01 --pad_to_max_length False "
    "--train_sampling_strategy group_by_length --per_device_train_batch_size 16 --per_device_eval_batch_size 64 "
    "--save_strategy epoch --save_total_limit 1 --logging_steps 20 --disable_tqdm True"
)
GATES = "--do_final_finetune --final_finetune_scheduler_type linear --final_finetune_warmup_steps 0.06"
BASELINES = ("layers", "magnitude")


@dataclass(frozen=True)
class TaskPlan:
    """A task and its schedule in epochs, much shorter than the published one (100 or 20 of pruning, 20 after).

    Args:
        name: of the GLUE task.
        metric: that is reported.
        dense: of plain fine-tuning.
        before: before the gates act; at least 1 from a model that is not fine-tuned.
        rising: while the target rises.
        pruning: in all until the extraction.
        after: of fine-tuning after it.
        flags: of run_glue.py.
        after_rate: learning rate at which cofi's fine-tuning after it begins, if not that of the pruning.
    """

    name: str
    metric: str
    dense: int
    before: int
    rising: int
    pruning: int
    after: int
    flags: str = ""
    after_rate: float | None = None


# Of SST-2, no epoch before the gates and the smaller rate after them were chosen on 3,000 rows of the training set
# that are not among the first 20,000 and have no five words in a row in common with them.
TASKS = {
    "mrpc": TaskPlan("mrpc", "f1", dense=5, before=1, rising=3, pruning=8, after=4),
    "sst2": TaskPlan(
        "sst2",
        "accuracy",
        dense=3,
        before=0,
        rising=1,
        pruning=4,
        after=2,
        flags="--max_train_samples 20000",
        after_rate=2e-5,
    ),
    "qnli_devsplit": TaskPlan("qnli", "accuracy", dense=5, before=1, rising=3, pruning=8, after=4),
}


class Runs:
    """The runs of one task and seed."""

    def __init__(self, arguments: argparse.Namespace, task: str, seed: int):
        self.arguments, self.task, self.seed, self.plan = arguments, task, seed, TASKS[task]
        self.teacher, self.data = self.folder("dense"), arguments.data_root / task

    def folder(self, way: str, sparsity: float | None = None) -> Path:
        """Of a run."""
        name = way if sparsity is None else f"{way}-{sparsity:g}"
        return self.arguments.output_dir / f"{self.task}-{name}-{self.seed}"

    def _script(self, folder: Path, model: Path | str, flags: str, after: Sequence[Path] = ()) -> None:
        flags = f"{COMMON} {self.plan.flags} {flags} --task_name {self.plan.name}"
        run_script(self.arguments, folder, flags, data=self.data, model=model, seed=self.seed, after=after)

    @property
    def _distillation(self) -> str:
        losses = {
            "layers": "--do_layer_distill --distill_loss_alpha 0.5 --distill_ce_loss_alpha 0.5",
            "logits": "--cache_teacher_logits --distill_ce_loss_alpha 1",
        }[self.arguments.distillation]
        return f"--do_distill {losses} --distillation_path {self.teacher}"

    def dense(self) -> Path:
        """The plainly fine-tuned model."""
        self._script(self.teacher, self.arguments.model, f"--num_train_epochs {self.plan.dense}")
        return self.teacher

    def cofi(self, sparsity: float) -> Path:
        """Prune, and fine-tune what is left; the folder of the small model."""
        plan, folder = self.plan, self.folder("cofi", sparsity)
        is_fine_tuned = self.arguments.start == "dense"
        before = plan.before if is_fine_tuned else max(plan.before, 1)
        schedule = (
            f"--pruning_type {self.arguments.kinds} --target_sparsity {sparsity} --num_train_epochs {plan.pruning} "
            f"--prepruning_finetune_epochs {before} --lagrangian_warmup_epochs {plan.rising} "
            f"--reg_learning_rate {self.arguments.reg_learning_rate} --final_finetune_epochs {plan.after}"
        )
        start = self.teacher if is_fine_tuned else self.arguments.model
        if plan.after_rate is not None:
            schedule += f" --final_finetune_learning_rate {plan.after_rate}"
        self._script(folder, start, f"{GATES} {schedule} {self._distillation}", after=[self.teacher])
        return folder / "finetuned"

    def baseline(self, way: str, sparsity: float, make: Callable[[PreTrainedModel, float], SubNetwork]) -> Path:
        """Cut the fine-tuned model to the size of cofi's and fine-tune it; the folder of the small model."""
        folder, epochs = self.folder(way, sparsity), self.plan.pruning + self.plan.after
        start, cofi = self.folder(f"{way}-start", sparsity), self.folder("cofi", sparsity)
        keep_same(start, {"way": way}, after=[self.teacher, cofi])
        if not (start / "config.json").exists():
            model = AutoModelForSequenceClassification.from_pretrained(self.teacher)
            report = json.loads((cofi / "pruned" / "pruning.json").read_text())
            sub_network = make(model, 1 - report["sparsity"])
            tokenizer = AutoTokenizer.from_pretrained(self.teacher)
            save_extracted(extract(model, sub_network), sub_network, start, tokenizer)
        flags = f"--pretrained_pruned_model {start} --num_train_epochs {epochs} {self._distillation}"
        self._script(folder, start, flags, after=[self.teacher, start])
        return folder / "finetuned"

    def score(self, folder: Path) -> float:
        """The metric on the validation set, in percent."""
        return 100 * json.loads((folder / "eval_results.json").read_text())[f"eval_{self.plan.metric}"]

    def speed_up(self, model: Path) -> float:
        """How much faster than the dense model, measured in turns with it."""
        file = model.parent / "evaluate.json"
        if not file.exists():
            flags = f"--batch_size 32 --timed_batches 4 --threads {self.arguments.threads}"
            flags += " --device cpu" if self.arguments.device == "cpu" else ""
            command = [sys.executable, "-m", "hf_nas.cli", "evaluate", self.plan.name, str(model), *flags.split()]
            command += ["--dense", str(self.teacher), "--data_dir", str(self.data), "--json", str(file)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return json.loads(file.read_text())["speed"]["speed_up"]


def layers_dropped(model: PreTrainedModel, share: float) -> SubNetwork:
    """Keep as many of the first layers as the share allows, and what is over of the next one."""
    structure, costs = describe(model), parameter_costs(model)
    kept: dict[str, int | None] = {sub_layer.name: None for sub_layer in structure}
    budget = share * costs.total
    for layer in range(max(sub_layer.layer for sub_layer in structure) + 1):
        inside = [sub_layer for sub_layer in structure if sub_layer.layer == layer]
        whole = kept | {sub_layer.name: sub_layer.units for sub_layer in inside}
        if costs.cost(SubNetwork.of(structure, whole)) > budget:
            return _filled(model, kept, [sub_layer.name for sub_layer in inside], budget)
        kept = whole
    return SubNetwork.full(structure)


def smallest_magnitudes(model: PreTrainedModel, share: float) -> SubNetwork:
    """Put the units in order of magnitude, in place, and keep the same share of each sub-layer."""
    structure = describe(model)
    reorder(model, structure, magnitude(model, structure))
    return _filled(model, {}, list(structure.names), share * parameter_costs(model).total)


def _filled(model: PreTrainedModel, kept: dict[str, int | None], names: list[str], budget: float) -> SubNetwork:
    """The largest common share of the units of these sub-layers within the budget, heads rounded to the nearest."""
    structure, costs = describe(model), parameter_costs(model)
    units = dict(zip(structure.names, (sub_layer.units for sub_layer in structure)))
    heads = {sub_layer.name for sub_layer in structure if sub_layer.layout.is_attention}

    def choice(share: float, neurons: float) -> SubNetwork:
        counts = {n: max(1, round((share if n in heads else neurons) * units[n])) for n in names}
        return SubNetwork.of(structure, {**kept, **counts})

    steps = [step / 1000 for step in range(1001)]
    share = max((s for s in steps if costs.cost(choice(s, s)) <= budget), default=0.0)
    # Heads are few, so that neurons make up for their rounding.
    neurons = max((s for s in steps if costs.cost(choice(share, s)) <= budget), default=0.0)
    return choice(share, neurons)


MAKERS = {"layers": layers_dropped, "magnitude": smallest_magnitudes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_run_arguments(parser)
    parser.add_argument("--tasks", nargs="+", choices=sorted(TASKS), default=list(TASKS))
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.6, 0.95])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--distillation", choices=["layers", "logits"], default="layers", help="of all small models")
    parser.add_argument("--start", choices=["dense", "pretrained"], default="dense", help="of cofi")
    kinds = "structured_heads+structured_mlp+layer"
    parser.add_argument("--kinds", default=kinds, help="of units, joined by '+'; published: hidden as well")
    parser.add_argument("--reg_learning_rate", type=float, default=0.05, help="of the gates; schedules are short")
    arguments = parser.parse_args()
    rows = []
    for task in arguments.tasks:
        runs = [Runs(arguments, task, seed) for seed in arguments.seeds]
        dense = [each.score(each.dense()) for each in runs]
        rows.append({"task": task, "way": "dense", "sparsity": 0.0, "scores": dense, "speed_ups": [1.0] * len(runs)})
        for sparsity in arguments.sparsities:
            small = {"cofi": [each.cofi(sparsity) for each in runs]}
            small |= {way: [each.baseline(way, sparsity, MAKERS[way]) for each in runs] for way in BASELINES}
            for way, models in small.items():
                rows.append({
                    "task": task, "way": way, "sparsity": sparsity,
                    "scores": [each.score(model.parent) for each, model in zip(runs, models)],
                    "speed_ups": [each.speed_up(model) for each, model in zip(runs, models)],
                })  # fmt: skip
    print(f"distillation: {arguments.distillation}; mean and standard deviation over seeds {arguments.seeds}")
    print(f"{'task':14} {'way':10} {'sparsity':>8} {'metric':>9} {'score':>13} {'speed-up':>13}")
    for row in rows:
        metric = TASKS[row["task"]].metric
        columns = f"{spread(row['scores']):>13} {spread(row['speed_ups']):>13}"
        print(f"{row['task']:14} {row['way']:10} {row['sparsity']:>8} {metric:>9} {columns}")
    write_json(arguments.output_dir / "results.json", rows)


if __name__ == "__main__":
    main()
