"""How a search measures sub-networks: on which data, by which metric, and by all processes of a run together."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction, PreTrainedModel, TrainingArguments

from hf_nas.main_input import MainInput
from hf_nas.search import Evaluated, Racing, Rejected, SuperNetworkEvaluator
from hf_nas.subnetwork import SubNetwork
from trainer_plugins.search.followers import Followers
from trainer_plugins.super_network.super_network_trainer import SuperNetworkTrainer


__all__ = [
    "ScoredRows",
    "SearchTask",
    "SelectionEvaluator",
    "TaskEvaluators",
    "contents_of",
    "digest_of",
    "precision_of",
    "scored",
]

Rows = Sequence[Mapping[str, Any]]
ComputeMetrics = Callable[[EvalPrediction], Mapping[str, float]]


@dataclass(frozen=True)
class ScoredRows:
    """Rows with a metric of their own, for tasks whose metric needs more of a data set than its labels.

    Args:
        rows: as the model reads them, texts tokenised.
        compute_metrics: as with `Trainer`.
        digest: a short name for what the metric compares with, by which a resumed search knows it again.
    """

    rows: Rows
    compute_metrics: ComputeMetrics
    digest: str = ""


def scored(dataset: Rows | ScoredRows, compute_metrics: ComputeMetrics | None) -> ScoredRows:
    """Rows with the metric they come with, or else this one.

    Raises:
        ValueError: if there is none.
    """
    if isinstance(dataset, ScoredRows):
        return dataset
    if compute_metrics is None:
        raise ValueError("There is no metric for the data to search on; give compute_metrics or pass ScoredRows.")
    return ScoredRows(dataset, compute_metrics)


@dataclass(frozen=True)
class SearchTask:
    """What sub-networks are measured on, and how.

    Args:
        datasets: the selection set under the name `None`, and those for the report.
        metric_name: by which sub-networks are compared.
        greater_is_better: whether a larger one is better.
        metric_scale: its value of a perfect model: 100 for one in percent.
        predictions: takes from the model's outputs what the metrics need; by default the logits.
    """

    datasets: Mapping[str | None, ScoredRows]
    metric_name: str
    greater_is_better: bool = True
    metric_scale: float = 1.0
    predictions: Callable[[Any], tuple[torch.Tensor, ...]] | None = None


class TaskEvaluators:
    """Evaluates on one data set at a time: rows and hidden states of another one leave the device first.

    All processes of a torchrun must call it together; they share the work.

    Args:
        trainer: holds the super-network, the collator and the batch size.
        task: with the data sets.
        race: whether sub-networks can be given up early on the selection set.

    Raises:
        ValueError: if the metric is none to race by.
    """

    def __init__(self, trainer: SuperNetworkTrainer, task: SearchTask, race: bool):
        self._trainer = trainer
        self._task = task
        self._racing = Racing(metric=task.metric_name, scale=task.metric_scale) if race else False
        self._current: tuple[str | None, SuperNetworkEvaluator] | None = None

    def functions(self) -> dict[str, Callable[..., Any]]:
        """By name, for [`Followers`]."""
        return {"evaluate": self.evaluate, "race": self.race, "keep_near": self.keep_near}

    def evaluate(self, dataset: str | None, sub_network: SubNetwork) -> dict[str, float]:
        """The metrics of a sub-network on the data set of this name."""
        return self._of(dataset)(sub_network)

    def race(
        self, sub_network: SubNetwork, known_costs: Sequence[float], front: Sequence[Evaluated]
    ) -> dict[str, float] | Rejected:
        """See [`hf_nas.search.SuperNetworkEvaluator.race`]."""
        return self._of(None).race(sub_network, known_costs, front)

    def keep_near(self, sub_networks: Sequence[SubNetwork]) -> None:
        """See [`hf_nas.search.SuperNetworkEvaluator.keep_near`]."""
        self._of(None).keep_near(sub_networks)

    def clear(self) -> None:
        """Free what is kept on the device."""
        if self._current is not None:
            self._current[1].clear()
            self._current = None

    def _of(self, name: str | None) -> SuperNetworkEvaluator:
        if self._current is None or self._current[0] != name:
            self.clear()
            self._current = (name, self._make(name))
        return self._current[1]

    def _make(self, name: str | None) -> SuperNetworkEvaluator:
        trainer, task, dataset = self._trainer, self._task, self._task.datasets[name]
        options = {} if task.predictions is None else {"predictions": task.predictions}
        return SuperNetworkEvaluator(
            trainer.create_super_network(),
            dataset.rows,
            trainer.data_collator,
            dataset.compute_metrics,
            batch_size=trainer.args.per_device_eval_batch_size,
            precision=precision_of(trainer.args),
            racing=self._racing if name is None else False,
            distributed=True,
            **options,
        )


def precision_of(arguments: TrainingArguments) -> str | None:
    """The precision that Trainer evaluates in: `"bf16"`, `"fp16"`, or None for that of the model."""
    for name in ("bf16", "fp16"):
        if getattr(arguments, name) or getattr(arguments, f"{name}_full_eval"):
            return name
    return None


class SelectionEvaluator:
    """Evaluates on the selection set for a search, each sub-network by all processes together.

    Args:
        followers: with the functions of [`TaskEvaluators`].
    """

    def __init__(self, followers: Followers):
        self._followers = followers
        self._near: list[SubNetwork] = []

    def __call__(self, sub_network: SubNetwork) -> dict[str, float]:
        """The metrics of a sub-network."""
        return self._followers.call("evaluate", None, sub_network)

    def race(
        self, sub_network: SubNetwork, known_costs: Sequence[float], front: Sequence[Evaluated]
    ) -> dict[str, float] | Rejected:
        """See [`hf_nas.search.SuperNetworkEvaluator.race`]."""
        return self._followers.call("race", sub_network, tuple(known_costs), list(front))

    def keep_near(self, sub_networks: Iterable[SubNetwork]) -> None:
        """See [`hf_nas.search.SuperNetworkEvaluator.keep_near`]."""
        near = list(sub_networks)
        if near != self._near:
            self._followers.call("keep_near", near)
            self._near = near


def digest_of(model: PreTrainedModel, dataset: ScoredRows) -> str:
    """A short name for these weights and this data, by which a resumed search knows them again."""
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
    main_input = MainInput.of(model).name
    for index in range(len(dataset.rows)):
        digest.update(contents_of(dataset.rows[index], main_input))
    digest.update(dataset.digest.encode())
    return digest.hexdigest()


def contents_of(row: Mapping[str, Any], main_input: str | None) -> bytes:
    """What a model reads in a row and what it is to answer, for a digest.

    Args:
        row: of a data set.
        main_input: name of the model's; None for what it is to answer alone.
    """
    values = (row.get(main_input), row.get("label", row.get("labels")))
    return repr(tuple(map(_in_full, values))).encode()


def _in_full(value: Any) -> Any:
    """The text of a large array shows only its ends, so that this gives its bytes."""
    array = value.cpu().numpy() if isinstance(value, torch.Tensor) else value
    return (array.dtype.str, array.shape, array.tobytes()) if isinstance(array, np.ndarray) else value
