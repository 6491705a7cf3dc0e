"""The order in which heads are pruned by importance, and what is left of a model on the way."""

import csv
import hashlib
import inspect
import io
import json
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedModel, TrainingArguments

from hf_nas.elastic import SuperNetwork
from hf_nas.files import write_json, write_text
from hf_nas.gates import head_rows
from hf_nas.importance.head_gradient import HeadOrder, michel_order
from hf_nas.main_input import MainInput, SequenceLengths
from hf_nas.profiling import SizeTable
from hf_nas.run_files import differences
from hf_nas.structures import describe
from trainer_plugins.arguments import HeadPruningArguments
from trainer_plugins.pruning.pruning_trainer import PruningTrainer
from trainer_plugins.search.task_evaluation import contents_of


logger = logging.getLogger(__name__)

ORDER_FILE = "order.json"
FRONT_FILES = ("front.csv", "front.json")
FRONT_FORMAT = "hf_nas.head_front/1"
# What Trainer adds to metrics says nothing about the model.
_NO_METRICS = ("_runtime", "_per_second", "_time", "epoch")
# What metrics depend on of the arguments of Trainer, as far as the task has them.
_EVALUATION_KEYS = (
    "predict_with_generate", "generation_max_length", "generation_num_beams", "generation_config",
    "prediction_loss_only", "bf16_full_eval", "fp16_full_eval",
)  # fmt: skip
# BERT-base has 144 heads, of which the published code prunes 12 at a time.
_STEPS = 12


def find_order(trainer: PruningTrainer, heads: HeadPruningArguments, folder: Path) -> HeadOrder:
    """The order in which heads are pruned (Michel et al., 2019): read if it was found before, or else computed.

    Args:
        trainer: holds the model and the training set, by whose rows, in order, importance is computed.
        heads: how.
        folder: where the order is kept.

    Raises:
        ValueError: for a step out of range or a loss that is not finite.
    """
    structure, path = describe(trainer.model), folder / ORDER_FILE
    step = heads.heads_per_step or math.ceil(sum(row.units for row in head_rows(structure)) / _STEPS)
    if path.is_file():
        removed = json.loads(path.read_text(encoding="utf-8"))["removed"]
        return HeadOrder(structure, tuple((name, unit) for name, unit in removed), step)
    order = michel_order(
        trainer.model,
        structure,
        _TrainingBatches(trainer),
        step,
        exact=heads.exact_pruning,
        per_example=heads.importance_per_example,
        distributed=trainer.args.world_size > 1,
    )
    if trainer.args.should_save:
        write_json(path, {"removed": order.removed, "heads_per_step": step})
    return order


class _TrainingBatches:
    """The training set in order, any number of times; of several processes each has every so-manieth batch."""

    def __init__(self, trainer: PruningTrainer):
        self._trainer = trainer
        self._rows, self._collator = trainer.train_dataset, trainer.data_collator
        if trainer.args.remove_unused_columns and isinstance(self._rows, datasets.Dataset):
            known = {*inspect.signature(type(trainer.model).forward).parameters, "label", "label_ids"}
            self._rows = self._rows.select_columns([name for name in self._rows.column_names if name in known])
        size, arguments = trainer.args.train_batch_size, trainer.args
        starts = range(arguments.process_index * size, len(self._rows), arguments.world_size * size)
        self._batches = [range(start, min(start + size, len(self._rows))) for start in starts]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in DataLoader(self._rows, batch_sampler=self._batches, collate_fn=self._collator):
            yield self._trainer._prepare_inputs(batch)


def heads_of_front(total: int, heads_per_step: int, wanted: int | None = None) -> list[int]:
    """How many heads the sub-networks of the front have, from all to none, with a wanted number among them."""
    extra = () if wanted is None else (wanted,)
    return sorted({*range(total, 0, -heads_per_step), 0, *extra}, reverse=True)


def evaluation_facts(
    model: PreTrainedModel, arguments: TrainingArguments, options: Mapping[str, Any]
) -> dict[str, Any] | None:
    """What the metrics of a front depend on beside the weights, as JSON gives it back; None if there are to be none.

    The rows count, not the file that they come from.

    Args:
        model: that is evaluated.
        arguments: of Trainer.
        options: of the trainer: `eval_dataset`, `compute_metrics`, and `eval_examples` where the task has some. If the
            score of a data set, or of its examples, depends on more than its rows, its `digest` says on what.
    """
    dataset, compute_metrics = options.get("eval_dataset"), options.get("compute_metrics")
    if not arguments.do_eval or dataset is None:
        return None
    settings, digest, main_input = arguments.to_dict(), hashlib.blake2b(digest_size=16), MainInput.of(model).name
    parts = list(dataset.values()) if isinstance(dataset, Mapping) else [dataset]
    # A stream says nothing of itself without being read.
    counts = [len(part) if hasattr(part, "__len__") else 0 for part in parts]
    for part, count in zip(parts, counts):
        for index in range(count):
            digest.update(contents_of(part[index], main_input))
    for each in (*parts, options.get("eval_examples")):
        digest.update(str(getattr(each, "digest", "")).encode())
    facts = {
        "rows": sum(counts),
        "digest": digest.hexdigest(),
        "compute_metrics": getattr(compute_metrics, "__qualname__", type(compute_metrics).__qualname__),
        **{name: settings[name] for name in _EVALUATION_KEYS if name in settings},
    }
    return json.loads(json.dumps(facts, default=str))


def write_front(
    trainer: PruningTrainer,
    order: HeadOrder,
    wanted: int | None,
    lengths: SequenceLengths,
    folder: Path,
    facts: Mapping[str, Any] | None,
) -> None:
    """Write sizes and, if evaluation is asked for, metrics of the sub-networks on the way, as CSV and JSON.

    Every prefix of the order says a sub-network, and none of them is trained.

    Args:
        trainer: holds the model and the evaluation set.
        order: of its heads.
        wanted: a number of heads that is measured in any case, if one is.
        lengths: of a sequence for which operations are counted.
        folder: where to.
        facts: of [`evaluation_facts`], which are written too; None for sizes alone.
    """
    table = SizeTable(trainer.model)
    if facts is None:
        logger.warning("The front has sizes but no metrics, since nothing is evaluated; add --do_eval.")
    points = []
    with SuperNetwork(trainer.model) as super_network:
        for heads in tqdm(
            heads_of_front(len(order.removed), order.heads_per_step, wanted),
            desc="Sub-networks of the front",
            leave=False,
            disable=trainer.args.disable_tqdm or not trainer.is_world_process_zero(),
        ):
            sub_network = order.keeping(heads)
            point = {
                "heads": heads,
                "parameters": table.parameters(sub_network),
                "macs": table.macs(sub_network, *lengths),
            }
            if facts is not None:
                with super_network.activated(sub_network):
                    metrics = trainer.evaluate()
                point |= {name: value for name, value in metrics.items() if not name.endswith(_NO_METRICS)}
            points.append(point)
    if trainer.args.should_save:
        _write(order, points, folder, facts)


def is_measured(folder: Path, facts: Mapping[str, Any]) -> bool:
    """Whether the front in this folder has the metrics of this evaluation; says what differs if it has others.

    Args:
        folder: of the run.
        facts: of [`evaluation_facts`].
    """
    path = folder / FRONT_FILES[1]
    if not path.is_file():
        return False
    earlier = json.loads(path.read_text(encoding="utf-8")).get("evaluation")
    if earlier is not None and earlier != facts:
        changed = "; ".join(differences(earlier, facts).values())
        logger.info("The front in '%s' is measured again: %s.", path, changed)
    return earlier == facts


def _write(order: HeadOrder, points: list[dict[str, Any]], folder: Path, facts: Mapping[str, Any] | None) -> None:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(points[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(points)
    write_text(folder / FRONT_FILES[0], buffer.getvalue())
    front = {
        "format": FRONT_FORMAT,
        "method": "michel",
        "heads_per_step": order.heads_per_step,
        "removed": order.removed,
        "points": points,
    }
    if facts is not None:
        front["evaluation"] = facts
    write_json(folder / FRONT_FILES[1], front)
