"""Candidates of standard NAS: each extracted from the pretrained model and fine-tuned on its own."""

import copy
import hashlib
import json
import logging
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import filelock
import torch
from accelerate.utils.memory import clear_device_cache
from transformers import EvalPrediction, PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as transformers_logging

from hf_nas.extraction import extract, save_extracted
from hf_nas.subnetwork import SubNetwork
from trainer_plugins.distillation.distilling_trainer import DistillingTrainer
from trainer_plugins.search.followers import Followers
from trainer_plugins.search.task_evaluation import ScoredRows
from trainer_plugins.super_network.super_network_trainer import SuperNetworkTrainer


__all__ = ["Candidates", "GoOn"]

logger = logging.getLogger(__name__)

# Told the number of epochs trained and the best metrics up to now; returns whether to train on.
GoOn = Callable[[int, Mapping[str, float]], bool]

# What the metrics of a candidate say beside those of its task.
EPOCHS = "epochs"
BEST_EPOCH = "best_epoch"
# Candidates share one output folder, one bar and one search; what the user set for the whole run would disturb.
_QUIET = {
    "disable_tqdm": True,
    "eval_delay": 0,
    "eval_on_start": False,
    "eval_strategy": "epoch",
    "load_best_model_at_end": False,
    "logging_strategy": "no",
    "metric_for_best_model": None,
    "prediction_loss_only": False,
    "push_to_hub": False,
    "report_to": [],
    "save_strategy": "no",
}


class _Scorer:
    """A metric that remembers what it returned last, without what Trainer adds to it."""

    def __init__(self, compute_metrics: Callable[[EvalPrediction], Mapping[str, float]]):
        self.compute_metrics = compute_metrics
        self.metrics: dict[str, float] = {}

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        self.metrics = {name: float(value) for name, value in self.compute_metrics(prediction).items()}
        return dict(self.metrics)


class _BestEpoch(TrainerCallback):
    """Keeps metrics and weights of the best epoch and asks after each one whether to go on."""

    def __init__(self, scorer: _Scorer, metric_name: str, greater_is_better: bool, go_on: GoOn):
        self.scorer = scorer
        self.metric_name = metric_name
        self.sign = 1.0 if greater_is_better else -1.0
        self.go_on = go_on
        self.epochs = 0
        self.best_epoch = 0
        self.metrics: dict[str, float] = {}
        self.weights: dict[str, torch.Tensor] = {}

    def on_evaluate(
        self, args: TrainingArguments, state: Any, control: Any, metrics: Mapping[str, float], model: Any, **_: Any
    ) -> None:
        """After each epoch."""
        self.epochs += 1
        found = dict(self.scorer.metrics)
        if "eval_loss" in metrics:
            found["loss"] = float(metrics["eval_loss"])
            if not math.isfinite(found["loss"]):
                # No further step repairs such weights, however good their constant prediction looks.
                control.should_training_stop = True
                return
        if not self.metrics or self._value(found) > self._value(self.metrics):
            self.best_epoch, self.metrics = self.epochs, found
            self.weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        if not self.go_on(self.epochs, self.outcome()):
            control.should_training_stop = True

    def _value(self, metrics: Mapping[str, float]) -> float:
        if self.metric_name not in metrics:
            raise ValueError(f"There is no metric {self.metric_name!r} but {sorted(metrics)}; search by one of these.")
        value = self.sign * metrics[self.metric_name]
        return -math.inf if math.isnan(value) else value

    def outcome(self) -> dict[str, float]:
        """The metrics of the best epoch, which one that was, and how many there were."""
        return {**self.metrics, BEST_EPOCH: self.best_epoch, EPOCHS: self.epochs}


class Candidates:
    """Fine-tunes and measures sub-networks of a pretrained model, as the evaluation of [`hf_nas.search.search`].

    The weights of a candidate's best epoch are kept in `<folder>/<digest of the sub-network>/` as long as it is on the
    front. Its training depends on the seed of the run and on the sub-network alone, so what is missing there can be
    trained again. Under torchrun all processes train each candidate together; the first one calls and the others
    follow.

    Args:
        trainer: holds the pretrained model, the training set and all arguments of the trainings.
        selection: rows on which candidates are compared after each epoch.
        reports: further rows by name, for [`measure`].
        folder: where candidates are kept.
        metric_name: which of the metrics is compared.
        greater_is_better: whether a larger one is better.
        kept: sub-networks whose weights are kept beside those on the front.
    """

    def __init__(
        self,
        trainer: SuperNetworkTrainer,
        selection: ScoredRows,
        reports: Mapping[str, ScoredRows],
        folder: str | Path,
        *,
        metric_name: str,
        greater_is_better: bool,
        kept: Iterable[SubNetwork] = (),
    ):
        self.trainer = trainer
        self.selection = selection
        self.reports = dict(reports)
        self.folder = Path(folder)
        self.metric_name = metric_name
        self.greater_is_better = greater_is_better
        self.kept = frozenset(kept)
        self.followers = Followers({"train": self._train, "measure": self._measure})
        self._mine: set[SubNetwork] = set()
        self._go_on: GoOn = _to_the_end

    def __call__(self, sub_network: SubNetwork, go_on: GoOn | None = None) -> dict[str, float]:
        """Fine-tune a sub-network and keep its best weights; returns the metrics of the best epoch.

        Args:
            sub_network: to be trained.
            go_on: asked after each epoch; by default all epochs are trained.

        Raises:
            FloatingPointError: if the loss is not finite after the first epoch.
        """
        self._go_on = go_on or _to_the_end
        metrics = self.followers.call("train", sub_network)
        self._mine.add(sub_network)
        return metrics

    def keep_near(self, front: Iterable[SubNetwork]) -> None:
        """Delete the weights of those that this process trained and that are not on the front any more."""
        # What others trained may be better than all of this front and not be recorded yet.
        outdated = self._mine - {*front} - self.kept
        try:
            with self.locked(timeout=0):
                self.delete(outdated)
                self._mine -= outdated
        except filelock.Timeout:
            pass  # They are being read.

    def delete(self, sub_networks: Iterable[SubNetwork]) -> None:
        """Delete the weights of these candidates, where there are any."""
        for sub_network in sub_networks:
            shutil.rmtree(self.path(sub_network), ignore_errors=True)

    @contextmanager
    def locked(self, timeout: float = -1) -> Iterator[None]:
        """No other process deletes candidates inside the block; `filelock.Timeout` if another one is inside of it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(self.folder / ".lock", timeout=timeout):
            yield

    def path(self, sub_network: SubNetwork) -> Path:
        """The folder of a candidate."""
        return self.folder / _digest(sub_network)

    def ensure(self, sub_network: SubNetwork, metrics: Mapping[str, float]) -> None:
        """Train a candidate once more if its weights are not there any more.

        Args:
            sub_network: of the candidate.
            metrics: what its training returned.
        """
        if (self.path(sub_network) / "config.json").is_file():
            return
        logger.info("The weights of candidate %s are not kept, so it is trained again.", _digest(sub_network))
        found = self(sub_network, lambda epoch, _: epoch < metrics[EPOCHS])[self.metric_name]
        if found != metrics[self.metric_name]:
            logger.warning(
                "Candidate %s has %s %.4f after a second training and had %.4f in the search.",
                _digest(sub_network), self.metric_name, found, metrics[self.metric_name],
            )  # fmt: skip

    def measure(self, name: str, sub_network: SubNetwork) -> dict[str, float]:
        """The metrics of a trained candidate on the rows of this name."""
        return self.followers.call("measure", name, sub_network)

    def save(self, sub_network: SubNetwork, folder: Path) -> None:
        """Write a trained candidate into a folder, with its tokenizer."""
        self._save(self._load(sub_network), sub_network, folder)

    def _save(self, model: PreTrainedModel, sub_network: SubNetwork, folder: Path) -> None:
        with _without_bars():
            save_extracted(model, sub_network, folder, self.trainer.processing_class)

    def _load(self, sub_network: SubNetwork) -> PreTrainedModel:
        with _without_bars():
            return type(self.trainer.model).from_pretrained(self.path(sub_network))

    def _train(self, sub_network: SubNetwork) -> dict[str, float]:
        is_first = self.trainer.is_world_process_zero()
        if is_first:
            # A process that was killed may have left a part of it.
            self.delete([sub_network])
        model = extract(self.trainer.model, sub_network)
        scorer = _Scorer(self.selection.compute_metrics)
        decide = partial(self._decide, _digest(sub_network))
        best = _BestEpoch(scorer, self.metric_name, self.greater_is_better, decide)
        training = self._make_trainer(model, sub_network, scorer)
        training.add_callback(best)
        training.train()
        if not best.metrics:
            raise FloatingPointError("the loss is not finite after the first epoch; lower the learning rate")
        model.load_state_dict(best.weights)
        if is_first:
            self._save(model, sub_network, self.path(sub_network))
        return best.outcome()

    def _decide(self, candidate: str, epoch: int, metrics: Mapping[str, float]) -> bool:
        """Whether to go on: the first process asks, all are told."""
        goes_on = [False]
        try:
            if self.trainer.is_world_process_zero():
                goes_on[0] = self._go_on(epoch, metrics)
        finally:
            if self.trainer.args.world_size > 1:
                torch.distributed.broadcast_object_list(goes_on, src=0)
        logger.info(
            "Candidate %s after epoch %d: best %s %.4f%s.",
            candidate, epoch, self.metric_name, metrics[self.metric_name], "" if goes_on[0] else ", ends here",
        )  # fmt: skip
        return goes_on[0]

    def _measure(self, name: str, sub_network: SubNetwork) -> dict[str, float]:
        rows = self.reports[name]
        scorer = _Scorer(rows.compute_metrics)
        self._make_trainer(self._load(sub_network), sub_network, scorer).evaluate(rows.rows)
        return scorer.metrics

    def _make_trainer(self, model: PreTrainedModel, sub_network: SubNetwork, scorer: _Scorer) -> Trainer:
        # Trainers before this one hold on to their models in cycles.
        clear_device_cache(garbage_collection=True)
        trainer, options = self.trainer, {}
        arguments = copy.copy(trainer.args)
        for name, value in _QUIET.items():
            setattr(arguments, name, value)
        arguments.output_dir = str(self.path(sub_network))
        arguments.seed = _seed(trainer.args.seed, sub_network)
        if trainer.teacher is not None:
            # The trainer prepares it once more.
            options["teacher"] = trainer.accelerator.unwrap_model(trainer.teacher, keep_fp32_wrapper=False)
        made = DistillingTrainer(
            model=model,
            args=arguments,
            distillation=trainer.distillation,
            data_collator=trainer.data_collator,
            train_dataset=trainer.train_dataset,
            eval_dataset=self.selection.rows,
            compute_metrics=scorer,
            processing_class=trainer.processing_class,
            **options,
        )
        made.remove_callback(PrinterCallback)
        return made


@contextmanager
def _without_bars() -> Iterator[None]:
    """No bars of transformers for each file inside the block, within that of the search."""
    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()


def _to_the_end(epoch: int, metrics: Mapping[str, float]) -> bool:
    return True


def _digest(sub_network: SubNetwork, *facts: Any) -> str:
    text = json.dumps([sub_network.to_dict(), *facts], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _seed(seed: int, sub_network: SubNetwork) -> int:
    """The seed of a candidate, below 2 ** 31."""
    return int(_digest(sub_network, seed), 16) % 2**31
