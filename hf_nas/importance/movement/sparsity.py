"""Movement sparsity on a stock model: scores learnt beside the weights, and masks that follow from them.

Sanh et al., "Movement Pruning: Adaptive Sparsity by Fine-Tuning" (2020); schedule, regularisation and structured
resolution as in NNCF 2.x.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_nas.bypass import restore_class, swap_class
from hf_nas.importance.movement.masking import Masks, MovementLinear, MovementState, start_threshold
from hf_nas.importance.movement.resolution import REPORT_NAME, kept_units, resolve, write_report
from hf_nas.importance.movement.schedule import MovementSchedule, Stage
from hf_nas.importance.movement.scores import MovementScores
from hf_nas.importance.movement.settings import MovementSettings
from hf_nas.importance.movement.structure import layers_with_structures
from hf_nas.structures import ModelStructure, describe


__all__ = ["MovementSparsity"]

logger = logging.getLogger(__name__)

_STATE_KEYS = ("step", "steps_per_epoch", "initial_threshold", "frozen")


class MovementSparsity:
    """Attaches movement sparsity to a stock model.

    The linear layers gain the parameters `weight_importance` and `bias_importance`, which any optimizer made after
    that trains, and the buffers `weight_mask` and `bias_mask`. All of them are part of the state dict, so that a
    checkpoint holds them; the names of the stock weights stay as they are. [`detach`] removes every trace.

    In a training loop, call [`set_step`] before each optimizer step's first forward pass and add [`regularization`]
    to the loss:

    ```python
    sparsity = MovementSparsity(model, settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
    for step, batch in enumerate(batches):
        sparsity.set_step(step, steps_per_epoch)
        (model(**batch).loss + sparsity.regularization()).backward()
        ...
    ```

    Under DistributedDataParallel with `find_unused_parameters=False`, stop at the freezing step (see
    [`total_steps`]): frozen scores get no gradient any more.

    Args:
        model: of a known family whose projections are `torch.nn.Linear`.
        settings: of the run.
        quantile: a layer's threshold is at most this quantile of its scores. With 1 (EFTNAS) a layer may be masked
            completely; NNCF's own value is 0.98.

    Raises:
        ValueError: if the family is not known or has other projections, something is attached to the model already,
            or the settings do not fit it.
    """

    def __init__(self, model: PreTrainedModel, settings: MovementSettings, quantile: float = 1.0):
        if isinstance(quantile, bool) or not isinstance(quantile, int | float) or not 0 < quantile <= 1:
            raise ValueError(f"The quantile of movement sparsity is {quantile!r}; give a number above 0 and up to 1.")
        if any(hasattr(type(module), "original_class") for module in model.modules() if isinstance(module, nn.Linear)):
            raise ValueError(
                f"A super-network or movement sparsity is attached to this {type(model).__name__} already; detach it "
                "first."
            )
        self.structure = describe(model)
        _check_linear(model, self.structure)
        structures = layers_with_structures(
            model,
            settings.sparse_structure_by_scopes,
            settings.ignored_scopes,
            settings.target_scopes,
            settings.validate_scopes,
        )
        factors = {
            path: structure.factors(tuple(model.get_submodule(path).weight.shape), f"The layer {path!r}")
            for path, structure in structures.items()
        }
        self.model = model
        self.settings = settings
        self.schedule = MovementSchedule(settings)
        multiplier = settings.compression_lr_multiplier
        self._state = MovementState(quantile, 1.0 if multiplier is None else multiplier)
        self._step = 0
        self._layers: dict[str, MovementLinear] = {}
        for path, layer_factors in factors.items():
            module = model.get_submodule(path)
            swap_class(module, MovementLinear)
            module.attach_movement(self._state, layer_factors)
            self._layers[path] = module

    @property
    def threshold(self) -> float:
        """Scores above it are kept; minus infinity before the warm-up."""
        return self._state.threshold

    @property
    def factor(self) -> float:
        """Weight of the regularisation."""
        return self._state.factor

    @property
    def frozen(self) -> bool:
        """Whether the scores are final and the masks fixed."""
        return self._state.frozen

    def total_steps(self, steps_per_epoch: int) -> int:
        """Number of optimizer steps after which the scores are final; training for longer only adapts the weights."""
        return self.schedule.total_steps(steps_per_epoch)

    def restart(self) -> None:
        """Count steps and epochs from 0 again, as for a second attempt with smaller batches; scores stay as they are.

        Once the scores are final, nothing begins again.
        """
        if not self.frozen:
            self.schedule = MovementSchedule(self.settings)

    def set_step(self, step: int, steps_per_epoch: int | None = None) -> None:
        """Set threshold and regularisation for an optimizer step; call it before its first forward pass.

        The first step after the warm-up resolves the masks to whole units, if the settings say so, and freezes them.

        Args:
            step: optimizer step since the start of training, from 0.
            steps_per_epoch: optimizer steps of one epoch, None while they are still being counted (in epoch 0).

        Raises:
            ValueError: if epochs differ in their number of steps, or the step lies before the one that froze the
                scores.
        """
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise ValueError(f"The optimizer step is {step!r}; give a whole number, counted from 0.")
        self.schedule.tell_steps_per_epoch(steps_per_epoch)
        stage = self.schedule.stage(step)
        if self.frozen and stage is not Stage.AFTER:
            raise ValueError(
                f"Optimizer step {step} lies before step {self.schedule.first_step(Stage.AFTER)}, at which the scores "
                "were frozen; attach movement sparsity anew to start over."
            )
        if stage is Stage.WARMUP and self.schedule.initial_threshold is None:
            scores = [pair for layer in self._layers.values() for pair in layer.scores]
            self.schedule.initial_threshold = start_threshold(scores)
            logger.info("Movement sparsity starts at the threshold %g.", self.schedule.initial_threshold)
        self._step = step
        self._state.threshold = self.schedule.threshold(step)
        self._state.factor = self.schedule.factor(step)
        if stage is Stage.AFTER and not self.frozen:
            if self.settings.enable_structured_masking:
                self._resolve()
            self._set_frozen(True)

    def regularization(self) -> torch.Tensor:
        """The term to add to the loss: the mean over the layers; 0 when it is off or the scores are frozen."""
        layers = list(self._layers.values())
        if self.frozen or not self.factor:
            return torch.zeros((), device=layers[0].weight.device)
        terms = [layer.regularization() for layer in layers]
        return self.factor * torch.stack([term.to(terms[0].device) for term in terms]).mean()

    def masks(self) -> dict[str, Masks]:
        """The masks of the last training forward pass, or the final ones, by path of the layer."""
        return {path: Masks(layer.weight_mask, layer.bias_mask) for path, layer in self._layers.items()}

    def masked_counts(self) -> dict[str, tuple[int, int]]:
        """Number of masked weights and biases of each layer."""
        return {
            path: (int((~weight).sum()), 0 if bias is None else int((~bias).sum()))
            for path, (weight, bias) in self.masks().items()
        }

    def scores(self) -> MovementScores:
        """A copy of the scores, on the CPU."""

        def copy_of(name: str) -> dict[str, torch.Tensor]:
            found = {path: getattr(layer, name) for path, layer in self._layers.items()}
            return {path: s.detach().float().cpu().clone() for path, s in found.items() if s is not None}

        return MovementScores(
            weights=copy_of("weight_importance"),
            biases=copy_of("bias_importance"),
            shapes={path: tuple(layer.weight.shape) for path, layer in self._layers.items()},
        )

    def write_report(self, folder: str | Path) -> Path:
        """Write which units the masks keep as `structured_sparsity.csv`, in the layout of NNCF.

        Returns:
            The path of the file.
        """
        path = Path(folder) / REPORT_NAME
        write_report(path, self.model, self.structure, kept_units(self.masks(), self.structure))
        return path

    def state_dict(self) -> dict[str, Any]:
        """What is not in the state dict of the model, in plain JSON types."""
        return {
            "step": self._step,
            "steps_per_epoch": self.schedule.steps_per_epoch,
            "initial_threshold": self.schedule.initial_threshold,
            "frozen": self.frozen,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what [`state_dict`] returned; the scores and masks come with the state dict of the model.

        Make the optimizer before: frozen scores require no gradient, and an optimizer made without them cannot read
        the state of one that had them.

        Raises:
            ValueError: if it is no such state, or belongs to a run with other settings.
        """
        _check_state(state)
        self.schedule.tell_steps_per_epoch(state["steps_per_epoch"])
        self.schedule.initial_threshold = state["initial_threshold"]
        self._step = state["step"]
        in_warmup = self.schedule.stage(self._step) is Stage.WARMUP
        if in_warmup and state["initial_threshold"] is None:
            raise ValueError(
                f"The state of movement sparsity at step {self._step} has no 'initial_threshold', though the warm-up "
                "has begun; give the settings of the run it comes from."
            )
        self._state.threshold = self.schedule.threshold(self._step)
        self._state.factor = self.schedule.factor(self._step)
        self._set_frozen(state["frozen"])

    def detach(self) -> None:
        """Give the model back as it was: same classes and names, weights as trained and not masked."""
        for layer in self._layers.values():
            layer.detach_movement()
            restore_class(layer)
        self._layers = {}

    def __enter__(self) -> "MovementSparsity":
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    @torch.no_grad()
    def _resolve(self) -> None:
        for path, (weight, bias) in resolve(self.masks(), self.structure).items():
            self._layers[path].weight_mask = weight
            self._layers[path].bias_mask = bias

    def _set_frozen(self, frozen: bool) -> None:
        self._state.frozen = frozen
        for layer in self._layers.values():
            for scores, _ in layer.scores:
                scores.requires_grad_(not frozen)
                # An optimizer skips a parameter without gradient, where a gradient of zero would leave its momentum.
                scores.grad = None


def _check_linear(model: PreTrainedModel, structure: ModelStructure) -> None:
    for sub_layer in structure:
        if not sub_layer.units:
            continue
        for path in (*sub_layer.layout.writers, sub_layer.layout.reader):
            module = sub_layer.module(model.base_model, path)
            if not isinstance(module, nn.Linear):
                raise ValueError(
                    f"Movement sparsity needs projections that are torch.nn.Linear, but {path!r} of this "
                    f"{structure.model_type} model is a {type(module).__name__}; choose a model of another family, or "
                    "another importance."
                )


def _check_state(state: Any) -> None:
    if not isinstance(state, Mapping) or set(state) != set(_STATE_KEYS):
        found = sorted(state) if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(
            f"This is no state of movement sparsity: it has {found}, not {', '.join(_STATE_KEYS)}; give what "
            "MovementSparsity.state_dict() returned."
        )
    step, threshold = state["step"], state["initial_threshold"]
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise ValueError(f"The state of movement sparsity has the 'step' {step!r}; give a whole number.")
    if threshold is not None and (isinstance(threshold, bool) or not isinstance(threshold, int | float)):
        raise ValueError(f"The state of movement sparsity has the 'initial_threshold' {threshold!r}; give a number.")
    if not isinstance(state["frozen"], bool):
        raise ValueError(f"The state of movement sparsity has 'frozen' {state['frozen']!r}; give true or false.")
