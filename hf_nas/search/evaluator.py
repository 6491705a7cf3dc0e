"""Measures sub-networks of a super-network on one data set, with as little around the forward passes as possible."""

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import EvalPrediction
from transformers.utils import find_labels

from hf_nas.elastic import SuperNetwork
from hf_nas.elastic.prefix import PrefixCache
from hf_nas.main_input import MainInput
from hf_nas.search.evaluation.batches import Batch, DataCollator, batch_factor, in_order, join, make_batches, to_array
from hf_nas.search.evaluation.racing import Racing, Rejected, Rival
from hf_nas.search.evaluation.ranks import Gather, Ranks
from hf_nas.subnetwork import SubNetwork


__all__ = ["SuperNetworkEvaluator"]

logger = logging.getLogger(__name__)

Tensors = torch.Tensor | tuple[torch.Tensor, ...]
_Outputs = tuple[np.ndarray, tuple[np.ndarray, ...]]

_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


def _logits(outputs: Any) -> torch.Tensor:
    logits = getattr(outputs, "logits", None)
    if logits is None:
        raise ValueError(
            f"The model returns a {type(outputs).__name__} without logits; give the evaluator a function "
            "predictions(outputs) that takes from it what the metric needs."
        )
    return logits


class SuperNetworkEvaluator:
    """Computes the metrics of sub-networks on a data set of texts or images, as the model reads them.

    The rows are sorted by their number of tokens, padded batch by batch and put on the device once (images, which all
    have the same number, stay in order); a call is then one forward pass a batch, and the metric. A sub-network that
    begins like an earlier one starts at the first layer that differs, which changes no bit of the result. Decoders
    build no key-value cache.

    Args:
        super_network: whose sub-networks are measured; it must be able to `activate` and tell its `active` one.
        dataset: rows with the main input of the model (`input_ids`, `pixel_values`), with its further inputs and with
            the labels; columns that the model does not take are left out.
        data_collator: makes a padded batch of tensors of a list of rows.
        compute_metrics: takes an `EvalPrediction` in the order of the data set, as with `Trainer`.
        batch_size: rows a forward pass.
        device: by default where the model is.
        predictions: takes from the model's outputs what the metric needs, one or several tensors with one row an
            example; by default the logits. It gets no hidden states of all layers, no attentions and no key-value
            cache, unless the model's configuration asks for the first two.
        prefix_cache_bytes: memory for hidden states that are reused, on the device; 0 for none. When the device runs
            out of memory they are given up first. See [`hf_nas.elastic.prefix.PrefixCache`] for its limits.
        racing: what [`race`] needs to give up sub-networks early; True for the defaults, which race by accuracy. Rows
            are then sorted by length within random parts, so that predictions differ by rounding from those without.
        grow_batches: give smaller sub-networks as many more rows a forward pass as fit the activation memory of the
            full one. Padding and the shapes of matrix products change with it, so that predictions differ by rounding,
            and hidden states are reused only among sub-networks of like size.
        precision: `"bf16"` or `"fp16"` to compute under autocast; by default as the model is.
        rank: of this process among those that share the rows of every evaluation. All of them must evaluate the same
            sub-networks in the same order; each then gets the same numbers, the same as a single process would.
        world_size: number of those processes.
        gather: brings together what they have, as a list in the order of the ranks; by default `torch.distributed`.
        distributed: take rank, world size and gathering from `torch.distributed` where that is initialised.

    Raises:
        ValueError: for a data set without rows or without the main input, or options that do not fit.
    """

    def __init__(
        self,
        super_network: SuperNetwork,
        dataset: Sequence[Mapping[str, Any]],
        data_collator: DataCollator,
        compute_metrics: Callable[[EvalPrediction], Mapping[str, float]],
        *,
        batch_size: int = 64,
        device: torch.device | str | None = None,
        predictions: Callable[[Any], Tensors] = _logits,
        prefix_cache_bytes: int = 2**30,
        racing: Racing | bool = False,
        grow_batches: bool = False,
        precision: str | None = None,
        rank: int = 0,
        world_size: int = 1,
        gather: Gather | None = None,
        distributed: bool = False,
    ):
        if len(dataset) == 0:
            raise ValueError("The data set to compare sub-networks on has 0 rows; give it some.")
        if batch_size < 1:
            raise ValueError(f"A batch of {batch_size} rows is none; batch_size must be 1 or more.")
        if precision is not None and precision not in _PRECISIONS:
            raise ValueError(f"Unknown precision {precision!r}; choose one of {', '.join(_PRECISIONS)}, or None.")
        if distributed and (world_size > 1 or gather is not None):
            raise ValueError(
                f"The evaluation is given {world_size} processes of its own and those of torch.distributed; choose "
                "one of the two."
            )
        self.super_network = super_network
        self.compute_metrics = compute_metrics
        self.predictions = predictions
        self.racing = Racing() if racing is True else racing or None
        model = super_network.model
        self.device = torch.device(device) if device is not None else next(model.parameters()).device
        self.precision = precision
        self._ranks = Ranks.of_torch() if distributed else Ranks(rank, world_size, gather)
        self._prefix = PrefixCache(super_network, prefix_cache_bytes)
        self._batch_size = batch_size
        self._grow_batches = grow_batches
        self._data_collator = data_collator
        arguments = inspect.signature(type(model).forward).parameters
        # Nothing is generated, so that keys and values are not needed again.
        self._options = {"use_cache": False} if "use_cache" in arguments else {}
        # In the order of the model's arguments: metrics of spans rely on the start before the end.
        self._label_names = [*find_labels(type(model)), "label", "label_ids"]
        columns = {*arguments, *self._label_names}
        main_input = MainInput.of(model)
        self._rows: list[dict[str, Any]] = []
        self._lengths: list[int] = []
        for index in range(len(dataset)):
            row = dataset[index]
            self._lengths.append(main_input.tokens_of(row))
            self._rows.append({name: value for name, value in row.items() if name in columns})
        count = len(self._rows)
        self._parts = [np.arange(count)] if self.racing is None else self.racing.parts_of(count)
        self._batches: dict[int, list[list[Batch]]] = {}
        self._labels = in_order([self._labels_of(part) for part in self._batches_of(1)])
        if not grow_batches:
            # Batches of another size are never made of them, and images take as much memory as their batches.
            self._rows.clear()

    def __call__(self, sub_network: SubNetwork) -> dict[str, float]:
        """The metrics of a sub-network. The model's mode and its active sub-network are as before afterwards.

        Raises:
            FloatingPointError: if the model predicts NaN.
        """
        return self._evaluate(sub_network)

    def race(
        self, sub_network: SubNetwork, known_costs: Sequence[float], front: Sequence[Rival]
    ) -> dict[str, float] | Rejected:
        """The metrics of a sub-network, or a [`Rejected`] as soon as it is hardly possible that it reaches the front.

        Args:
            sub_network: to evaluate.
            known_costs: its costs beside the error, in the order of the search's objectives.
            front: fully evaluated sub-networks (at least those on the Pareto front), the error first in their costs.

        Raises:
            ValueError: if the evaluator was made without racing, or if metric, scores and costs do not fit together.
        """
        if self.racing is None:
            raise ValueError("This evaluator does not race; make it with racing=True.")
        self.keep_near([rival.sub_network for rival in front])
        place = self.racing.rival_of(known_costs, front)
        return self._evaluate(sub_network, None if place is None else (place, front[place]))

    def keep_near(self, sub_networks: Iterable[SubNetwork]) -> None:
        """Keep hidden states for neighbours of these rather than of others, for a search to say before each call.

        It changes no result. [`race`] says it by itself.

        Args:
            sub_networks: that the next ones will resemble, usually the Pareto front.
        """
        self._prefix.keep_near(sub_networks)

    def clear(self) -> None:
        """Free the hidden states that are kept for reuse; needed after a change of weights through `.data`."""
        self._prefix.clear()

    @property
    def reused_layers(self) -> tuple[int, int]:
        """How many layers of forward passes were reused, and how many computed, up to now."""
        return self._prefix.reused, self._prefix.computed

    def _evaluate(
        self, sub_network: SubNetwork, rival: tuple[int, Rival] | None = None
    ) -> dict[str, float] | Rejected:
        model = self.super_network.model
        factor = self._factor(sub_network)
        parts = self._batches_of(factor)
        before = self.super_network.active
        outputs: list[_Outputs] = []
        # Outside inference mode: what a super-network caches on activation must stay good for training.
        self.super_network.activate(sub_network)
        try:
            with (
                _evaluation_mode(model),
                torch.inference_mode(),
                self._autocast(),
                self._prefix.evaluating(sub_network) as begin,
            ):
                for number, part in enumerate(parts):
                    outputs += self._ranks.exchange(lambda part=part: self._predict(part, begin))
                    if rival is not None and number + 1 < len(parts):
                        rejected = self._rejection(outputs, *rival)
                        if rejected is not None:
                            return rejected
        finally:
            self.super_network.activate(before)
        prediction = EvalPrediction(predictions=in_order(outputs), label_ids=self._labels)
        _refuse_nan(prediction.predictions)
        metrics = {name: float(value) for name, value in self.compute_metrics(prediction).items()}
        if self.racing is not None:
            self.racing.check(self.racing.example_scores(prediction), metrics)
        return metrics

    def _factor(self, sub_network: SubNetwork) -> int:
        if not self._grow_batches:
            return 1
        longest = max(self._lengths)
        factor = batch_factor(self.super_network.model, self.super_network.structure, sub_network, longest)
        # Beyond one batch for the largest part there is nothing to gain.
        return min(factor, -(-max(map(len, self._parts)) // self._batch_size))

    def _batches_of(self, factor: int) -> list[list[Batch]]:
        """The batches of each part, of so many times the batch size."""
        if factor not in self._batches:
            self._batches[factor] = [
                make_batches(
                    self._rows,
                    self._lengths,
                    part,
                    self._data_collator,
                    factor * self._batch_size,
                    self._label_names,
                    self.device,
                    (factor, number),
                    self._ranks.is_mine,
                )
                for number, part in enumerate(self._parts)
            ]
        return self._batches[factor]

    @staticmethod
    def _labels_of(batches: Sequence[Batch]) -> _Outputs:
        labels = join([batch.labels for batch in batches])
        return np.concatenate([batch.rows for batch in batches]), tuple(map(to_array, labels))

    def _predict(self, batches: Sequence[Batch], begin: Callable[[Any], None]) -> _Outputs:
        """This process's share: the places of its rows and what the metric needs of them."""
        mine = [batch for number, batch in enumerate(batches) if self._ranks.is_mine(number)]
        if not mine:
            return np.array([], dtype=int), ()
        outputs = [self._forward(batch, begin) for batch in mine]
        # One transfer from the device for all batches.
        return np.concatenate([batch.rows for batch in mine]), tuple(map(to_array, join(outputs)))

    def _forward(self, batch: Batch, begin: Callable[[Any], None]) -> tuple[torch.Tensor, ...]:
        try:
            return self._forward_once(batch, begin)
        except torch.OutOfMemoryError:
            if not self._prefix.bytes:
                raise
            logger.warning(
                "Out of memory on %s: %.1f MiB of hidden states are given up, which were kept for reuse.",
                self.device,
                self._prefix.bytes / 2**20,
            )
        # Outside the except block, whose traceback holds the activations of the failed pass.
        self._prefix.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return self._forward_once(batch, begin)

    def _forward_once(self, batch: Batch, begin: Callable[[Any], None]) -> tuple[torch.Tensor, ...]:
        begin(batch.name)
        tensors = self.predictions(self.super_network.model(**batch.inputs, **self._options))
        return (tensors,) if isinstance(tensors, torch.Tensor) else tuple(tensors)

    def _rejection(self, outputs: Sequence[_Outputs], place: int, rival: Rival) -> Rejected | None:
        """Whether what is evaluated so far is enough to give up."""
        count = sum(len(rows) for rows, _ in outputs)
        order = np.concatenate(self._parts)[:count]
        places = np.sort(order)
        labels = self._labels
        if labels is not None:
            labels = tuple(each[places] for each in labels) if isinstance(labels, tuple) else labels[places]
        prediction = EvalPrediction(predictions=in_order(outputs, places), label_ids=labels)
        scores = self.racing.example_scores(prediction)
        in_random_order = scores[np.searchsorted(places, order)]
        if not self.racing.is_lost(in_random_order, len(self._lengths), rival):
            return None
        estimate = float(scores.mean() * self.racing.scale)
        return Rejected(self.racing.metric, estimate, count, len(self._lengths), place)

    def _autocast(self) -> AbstractContextManager:
        if self.precision is None:
            return nullcontext()
        return torch.autocast(self.device.type, _PRECISIONS[self.precision])


def _refuse_nan(predictions: np.ndarray | tuple[np.ndarray, ...]) -> None:
    # A metric would make an ordinary number of them: argmax takes NaN for the largest.
    for array in predictions if isinstance(predictions, tuple) else (predictions,):
        if np.issubdtype(array.dtype, np.floating) and np.isnan(array).any():
            raise FloatingPointError("the model predicts NaN")


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within the block; each module has its own mode again after it."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
