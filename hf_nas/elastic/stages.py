"""Training stages of BootstrapNAS (progressive shrinking) and their learning rates, as plain arithmetic.

A stage says for how many epochs which dimensions are elastic, and how far. Steps are optimizer steps, counted from 0.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


__all__ = ["GlobalLearningRate", "Stage", "StageSchedule"]

logger = logging.getLogger(__name__)

# What BootstrapNAS falls back on where a stage has no 'init_lr'.
_DEFAULT_LEARNING_RATE = 3.5e-6
_DIMENSIONS = ("width", "depth")
# Elastic kernels are for convolutions. Published lists of dimensions name them by default, so there they do no harm.
_KERNEL = "kernel"
_DEFAULT_AVAILABLE = ("width", "depth", _KERNEL)
_DEFAULT_ORDER = (_KERNEL, "depth", "width")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_integer(value) and value >= 1


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _are_dimensions(value: Any) -> bool:
    known = isinstance(value, tuple) and all(each in _DIMENSIONS for each in value)
    return known and len(value) == len(set(value)) > 0


_Rules = Mapping[str, tuple[Callable[[Any], bool], str]]
_COUNT = (_is_count, "a whole number of 1 or more")
_RATE = (_is_positive, "a number above 0")
_FLAG = (lambda value: isinstance(value, bool), "true or false")
_STAGE_RULES: _Rules = {
    "train_dims": (_are_dimensions, "a list of 'width', 'depth' or both (elastic kernels are for convolutions)"),
    "epochs": _COUNT,
    "depth_indicator": _COUNT,
    "width_indicator": (
        lambda value: _is_integer(value) and (value == -1 or value > 0),
        f"{_COUNT[1]}, or -1 for all",
    ),
    "reorg_weights": _FLAG,
    "bn_adapt": _FLAG,
    "init_lr": _RATE,
    "epochs_lr": _COUNT,
    "sample_rate": _COUNT,
    "reorg_interval": _COUNT,
}
_GLOBAL_RULES: _Rules = {
    "base_lr": _RATE,
    "num_epochs": _COUNT,
    "warmup_epochs": (lambda value: _is_integer(value) and value >= 0, "a whole number"),
    "warmup_lr": _RATE,
}
_OPTIONAL = ("init_lr", "epochs_lr", "reorg_interval", "num_epochs")


def _check_rules(values: Mapping[str, Any], rules: _Rules, source: str) -> None:
    for name, value in values.items():
        is_allowed, wanted = rules[name]
        if not is_allowed(value) and not (value is None and name in _OPTIONAL):
            value = list(value) if isinstance(value, tuple) else value
            raise ValueError(f"{source} has the {name!r} {value!r}; give {wanted}.")


def _check_keys(given: Any, allowed: Sequence[str], source: str) -> None:
    if not isinstance(given, Mapping):
        raise ValueError(f"{source} is {given!r}; write an object with keys among {_list(allowed)}.")
    if unknown := [key for key in given if key not in allowed]:
        raise ValueError(f"{source} has the unknown key {unknown[0]!r}; choose from {_list(allowed)}.")


def _list(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)


@dataclass(frozen=True)
class Stage:
    """One stage of the training of a super-network, as BootstrapNAS describes it.

    Args:
        train_dims: which dimensions are elastic: `"width"`, `"depth"` or both; the others are left as they are.
        epochs: length.
        depth_indicator: how many blocks, counted from the last, may be skipped in each chain of blocks that directly
            follow one another; blocks without a neighbour are free.
        width_indicator: only this many of the widest choices of every width may be used, -1 for all. The default, 1,
            leaves the full width alone.
        reorg_weights: whether the units are sorted by a norm of their weights when the stage begins.
        bn_adapt: whether batch normalisations are estimated anew when the stage begins; models without any, such as
            transformers, have nothing to do.
        init_lr: learning rate in the first step.
        epochs_lr: length of the cosine in epochs, by default `epochs`. A longer one ends above 0; after a shorter one
            the learning rate stays at 0.
        sample_rate: a new random sub-network is drawn every so many steps.
        reorg_interval: the first stage sorts the units by importance every so many epochs, from the first one on; by
            default at its beginning only.

    Raises:
        ValueError: for a value that is not allowed.
    """

    train_dims: tuple[str, ...]
    epochs: int = 1
    depth_indicator: int = 1
    width_indicator: int = 1
    reorg_weights: bool = False
    bn_adapt: bool = False
    init_lr: float | None = None
    epochs_lr: int | None = None
    sample_rate: int = 1
    reorg_interval: int | None = None

    def __post_init__(self):
        _check_rules(asdict(self), _STAGE_RULES, "A stage")

    @classmethod
    def from_nncf(cls, entry: Mapping[str, Any], source: str = "A stage") -> "Stage":
        """Read an entry of `list_stage_descriptions`.

        Args:
            entry: its keys are the arguments of this class; all but `train_dims` can be left out.
            source: what error messages call it.

        Raises:
            ValueError: for an unknown key, a value that is not allowed, or without `train_dims`.
        """
        _check_keys(entry, list(_STAGE_RULES), source)
        if "train_dims" not in entry:
            raise ValueError(
                f"{source} has no 'train_dims', which by default is 'kernel' alone, and elastic kernels are for "
                "convolutions; give it a list of 'width', 'depth' or both."
            )
        values = dict(entry)
        if isinstance(values["train_dims"], list):
            values["train_dims"] = tuple(values["train_dims"])
        if _is_integer(values.get("sample_rate")) and values["sample_rate"] < 1:
            logger.warning("%s has the 'sample_rate' %d, which counts as 1.", source, values["sample_rate"])
            values["sample_rate"] = 1
        _check_rules(values, _STAGE_RULES, source)
        stage = cls(**values)
        if stage.epochs_lr is not None and stage.epochs_lr < stage.epochs:
            idle = stage.epochs - stage.epochs_lr
            logger.warning("%s has the learning rate 0 in its last %d epochs, by 'epochs_lr'.", source, idle)
        return stage

    def to_nncf(self) -> dict[str, Any]:
        """The entry for `list_stage_descriptions`, in plain JSON types."""
        values = {name: value for name, value in asdict(self).items() if value is not None}
        return {**values, "train_dims": list(self.train_dims)}

    def random_step(self, step: int) -> int:
        """The step whose random sub-network is used in this one, both counted within the stage.

        That is the step itself where a new one is drawn; in between, the one drawn last stays. (The published code
        trains the full network there instead.)
        """
        return step - step % self.sample_rate


@dataclass(frozen=True)
class GlobalLearningRate:
    """One learning rate for all stages: a linear warm-up, then a cosine.

    Args:
        base_lr: at the beginning of the cosine.
        num_epochs: length of the cosine, by default what the warm-up leaves (as published: the whole training).
        warmup_epochs: length of the warm-up.
        warmup_lr: from which the warm-up starts.

    Raises:
        ValueError: for a value that is not allowed.
    """

    base_lr: float
    num_epochs: int | None = None
    warmup_epochs: int = 0
    warmup_lr: float = 3.4e-4

    def __post_init__(self):
        _check_rules(asdict(self), _GLOBAL_RULES, "The global learning rate")

    @classmethod
    def from_nncf(cls, lr_schedule: Mapping[str, Any], source: str) -> "GlobalLearningRate":
        """Read `lr_schedule`; a `ValueError` names what is unknown, not allowed or missing."""
        _check_keys(lr_schedule, ["params"], source)
        values = lr_schedule.get("params", {})
        _check_keys(values, list(_GLOBAL_RULES), f"'params' of {source}")
        if "base_lr" not in values:
            raise ValueError(f"{source} has no 'base_lr'; give a number above 0.")
        _check_rules(values, _GLOBAL_RULES, source)
        return cls(**values)


@dataclass(frozen=True)
class StageSchedule:
    """The stages of a training, one after the other; their epochs add up to its length.

    Args:
        stages: in order.
        global_learning_rate: replaces the learning rates of the stages, if given.

    Raises:
        ValueError: for no stage, or a stage with a learning rate beside the global one.
    """

    stages: tuple[Stage, ...]
    global_learning_rate: GlobalLearningRate | None = None

    def __post_init__(self):
        if not self.stages:
            raise ValueError("The schedule has no stage; give one or more.")
        if self.global_learning_rate is not None:
            _check_no_own_rates(self.stages, "The schedule")

    @classmethod
    def from_nncf(cls, training: Mapping[str, Any], source: str = "'bootstrapNAS.training'") -> "StageSchedule":
        """Read the schedule of an NNCF 2.x configuration.

        A stage trains available dimensions only, and all that the stage before it trains. Each available dimension
        must be listed in `progressivity_of_elasticity`; of the two dimensions left here either may come first, as in
        BootstrapNAS. Elastic kernels are for convolutions: in these lists they are passed over, in a stage they are
        an error.

        Without a schedule BootstrapNAS takes five stages of one epoch: kernels; then depth as well; depth with
        indicator 2; then width as well; width with indicator 2, sorted by norms. Of these the first does nothing here
        and is left out, and so are dimensions that are not available and stages that repeat the one before.

        Args:
            training: the part `bootstrapNAS.training`; keys that have nothing to do with the schedule are not read.
            source: what error messages call it.

        Raises:
            ValueError: for unknown keys or values that are not allowed, a stage that breaks the rules above, or one
                with a learning rate beside a global one.
        """
        elasticity = training.get("elasticity", {})
        if not isinstance(elasticity, Mapping):
            raise ValueError(f"{source} has the 'elasticity' {elasticity!r}; write an object.")
        key = "available_elasticity_dims"
        available = _read_dimensions(elasticity.get(key, _DEFAULT_AVAILABLE), key, source)
        key = "progressivity_of_elasticity"
        order = _read_dimensions(training.get(key, _DEFAULT_ORDER), key, source)
        if missing := [name for name in available if name not in order]:
            raise ValueError(f"{source} makes {missing[0]!r} elastic, but its {key!r} leaves it out; add it there.")
        if not available:
            raise ValueError(f"{source} makes only elastic kernels available; add 'width' or 'depth'.")

        schedule = training.get("schedule", {})
        _check_keys(schedule, ["list_stage_descriptions"], f"'schedule' of {source}")
        entries = schedule.get("list_stage_descriptions")
        if entries is None:
            stages = _default_stages(available)
            logger.info("%s has no schedule; it gets %d stages of one epoch.", source, len(stages))
        elif isinstance(entries, list) and entries:
            stages = tuple(Stage.from_nncf(entry, f"Stage {i} of {source}") for i, entry in enumerate(entries))
            _check_progress(stages, available, source)
        else:
            raise ValueError(f"{source} has the 'list_stage_descriptions' {entries!r}; give a list of stages.")
        if not training.get("lr_schedule"):
            return cls(stages)
        _check_no_own_rates(stages, source)
        return cls(stages, GlobalLearningRate.from_nncf(training["lr_schedule"], f"'lr_schedule' of {source}"))

    @property
    def total_epochs(self) -> int:
        """Epochs of all stages together; in BootstrapNAS they replace the trainer's number of epochs."""
        return sum(stage.epochs for stage in self.stages)

    def stage_at(self, step: int, steps_per_epoch: int) -> tuple[int, Stage, int]:
        """The stage of a step. Steps beyond the end belong to the last stage.

        Args:
            step: of the whole training.
            steps_per_epoch: optimizer steps an epoch.

        Returns:
            The index of the stage, the stage, and the step within it.

        Raises:
            ValueError: for a step below 0, or no steps an epoch.
        """
        if not _is_integer(step) or step < 0:
            raise ValueError(f"There is no step {step!r}; steps are counted from 0.")
        if not _is_count(steps_per_epoch):
            raise ValueError(f"An epoch of {steps_per_epoch!r} steps is none; give a whole number of 1 or more.")
        index = 0
        while index < len(self.stages) - 1 and step >= self.stages[index].epochs * steps_per_epoch:
            step -= self.stages[index].epochs * steps_per_epoch
            index += 1
        return index, self.stages[index], step

    def random_step(self, step: int, steps_per_epoch: int) -> int:
        """The step of the whole training whose random sub-network is used in this one (see [`Stage.random_step`])."""
        _, stage, within = self.stage_at(step, steps_per_epoch)
        return step - within + stage.random_step(within)

    def learning_rate(
        self, step: int, steps_per_epoch: int, *, compat: bool = False, default: float | None = None
    ) -> float:
        """The learning rate of a step.

        Each stage has a cosine of its own, from `init_lr` in its first step to 0 after `epochs_lr` epochs, after which
        it stays there; a schedule with a global learning rate has one for the whole training.

        Args:
            step: of the whole training.
            steps_per_epoch: optimizer steps an epoch.
            compat: compute the published learning rates, which lag: each epoch begins with the last learning rate of
                the one before it, so that the cosine ends above 0.
            default: for stages without `init_lr`; without it they get 3.5e-6 as published, with a warning.

        Raises:
            ValueError: for a step below 0, or no steps an epoch.
        """
        index, stage, within = self.stage_at(step, steps_per_epoch)
        if self.global_learning_rate is not None:
            return self._global(step, steps_per_epoch, compat)
        rate = stage.init_lr if stage.init_lr is not None else default
        if rate is None:
            if within == 0:
                logger.warning("Stage %d has no 'init_lr'; it gets %g.", index, _DEFAULT_LEARNING_RATE)
            rate = _DEFAULT_LEARNING_RATE
        length = (stage.epochs_lr or stage.epochs) * steps_per_epoch
        return _cosine(rate, _lagging(within, steps_per_epoch) if compat else within, length)

    def _global(self, step: int, steps_per_epoch: int, compat: bool) -> float:
        rates = self.global_learning_rate
        step = _lagging(step, steps_per_epoch) if compat else step
        warm_up = rates.warmup_epochs * steps_per_epoch
        if step < warm_up:
            # The published warm-up is one step ahead of its counter.
            done = (step + compat) / warm_up
            return rates.warmup_lr + done * (rates.base_lr - rates.warmup_lr)
        own = self.total_epochs if compat else max(self.total_epochs - rates.warmup_epochs, 1)
        epochs = rates.num_epochs or own
        return _cosine(rates.base_lr, step - warm_up, epochs * steps_per_epoch)


def _lagging(step: int, steps_per_epoch: int) -> int:
    """The step by the published counter, which expects one call an epoch more than it gets."""
    return step - max(step - 1, 0) // steps_per_epoch


def _cosine(rate: float, step: int, length: int) -> float:
    return 0.5 * rate * (1 + math.cos(math.pi * min(step, length) / length))


def _read_dimensions(given: Any, key: str, source: str) -> tuple[str, ...]:
    """The dimensions of a list, without kernels."""
    known = isinstance(given, list | tuple) and all(each in _DEFAULT_ORDER for each in given)
    if not known or len(set(given)) < len(given):
        raise ValueError(f"{source} has the {key!r} {given!r}; give a list of {_list(_DEFAULT_AVAILABLE)}, each once.")
    return tuple(name for name in given if name != _KERNEL)


def _default_stages(available: Sequence[str]) -> tuple[Stage, ...]:
    depth = (Stage(("depth",)), Stage(("depth",), depth_indicator=2)) if "depth" in available else ()
    if "width" not in available:
        return depth
    dimensions = ("depth", "width") if depth else ("width",)
    return *depth, Stage(dimensions), Stage(dimensions, width_indicator=2, reorg_weights=True, bn_adapt=True)


def _check_no_own_rates(stages: Sequence[Stage], source: str) -> None:
    for index, stage in enumerate(stages):
        if stage.init_lr is not None:
            what = f"{source} gives stage {index} the 'init_lr' {stage.init_lr}"
            raise ValueError(f"{what} beside a global 'lr_schedule'; remove one of them.")


def _check_progress(stages: Sequence[Stage], available: Sequence[str], source: str) -> None:
    """Refuse stages with dimensions that are not available, or without one that the stage before has."""
    before: tuple[str, ...] = ()
    for index, stage in enumerate(stages):
        where = f"Stage {index} of {source} trains {list(stage.train_dims)}"
        if missing := [name for name in stage.train_dims if name not in available]:
            raise ValueError(
                f"{where}, but {missing[0]!r} is not among its 'available_elasticity_dims' {list(available)}; add it "
                "there or take it out of the stage."
            )
        if dropped := [name for name in before if name not in stage.train_dims]:
            raise ValueError(f"{where}, but the one before it {dropped[0]!r}, and no stage can go back; add it.")
        before = stage.train_dims
