"""A configuration file of NNCF 2.x with the additions of EFTNAS, as a value.

NNCF 3 has neither movement sparsity nor BootstrapNAS any more; the files that configured them keep working here. Every
key is honoured, or refused by name with the reason; the few that cannot matter here are said to have no effect.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_nas.elastic.stages import StageSchedule
from hf_nas.importance.movement import MovementSettings
from hf_nas.nncf_config.elasticity import DepthElasticity, WidthElasticity
from hf_nas.nncf_config.reading import Section, read_file
from hf_nas.nncf_config.search_settings import SearchSettings, read_bn_adaptation


__all__ = ["InputInfo", "NncfConfig", "TrainingSettings"]

logger = logging.getLogger(__name__)

_OF_RUN_MLM = "it is an option of the published run_mlm.py; give the script's own flags for its data instead"
_REFUSED_AT_ROOT = {
    "data_ratio": _OF_RUN_MLM,
    "tokenized_datasets_cache_file": _OF_RUN_MLM,
    "tokenized_datasets_group_txt_cache_file": _OF_RUN_MLM,
}
_ROOT_KEYS = (
    "input_info", "log_dir", "target_device", "compression", "compression_lr_multiplier", "bootstrapNAS",
    "movement_sparsity_total_epochs", "model_name_or_path", "kd_teacher_model", "kd_mode", "kd_temperature",
)  # fmt: skip
_REFUSED_IN_TRAINING = {
    "train_steps": "the published scripts do not read it either; give --max_steps instead",
    "compression": "a teacher is given with 'kd_teacher_model' at the root or with --kd_teacher_model; remove it",
}
_REFUSED_IN_ELASTICITY = {
    "ignored_scopes": "NNCF does not honour it either; list the layers to change in 'width.overwrite_groups'",
    "target_scopes": "NNCF does not honour it either; list the layers to change in 'width.overwrite_groups'",
    "kernel": "these models have no convolutions whose kernels could be elastic; remove it",
}
_TARGET_DEVICES = ("ANY", "CPU", "GPU", "NPU", "VPU", "TRIAL", "CPU_SPR")


@dataclass(frozen=True)
class InputInfo:
    """One input of the model: the length of its sequence, and as what NNCF made it up.

    Args:
        sequence_length: tokens.
        batch_size: has no effect, since costs are those of one sample.
    """

    sequence_length: int
    batch_size: int = 1
    type: str | None = None
    keyword: str | None = None
    filler: str | None = None

    @property
    def of_decoder(self) -> bool:
        """Whether it is an input of an encoder-decoder's decoder, which may have a length of its own."""
        return (self.keyword or "").startswith("decoder")

    @classmethod
    def read(cls, section: Section) -> "InputInfo":
        """Read one entry of `input_info`."""
        section.check_keys(("sample_size", "type", "keyword", "filler"))
        size = section.data.get("sample_size")
        whole = isinstance(size, list) and all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in size)
        if not whole or len(size) != 2:
            raise section.error("sample_size", "give the batch size and the number of tokens, such as [1, 128]")
        names = (section.text(key, None) for key in ("type", "keyword", "filler"))
        return cls(size[1], size[0], *names)

    def to_nncf(self) -> dict[str, Any]:
        """The entry, in plain JSON types."""
        names = {"type": self.type, "keyword": self.keyword, "filler": self.filler}
        return {
            "sample_size": [self.batch_size, self.sequence_length],
            **{key: value for key, value in names.items() if value is not None},
        }


@dataclass(frozen=True)
class TrainingSettings:
    """The section `bootstrapNAS.training`: how the super-network is trained, and what is elastic in it.

    Args:
        schedule: the stages and their learning rates.
        available_dims: what is elastic at all: "width", "depth".
        progressivity: the order in which stages may make it so.
        width: widths of the groups.
        depth: blocks that may be left out.
        bn_adaptation_samples: samples to adapt the statistics of BatchNorm layers with, which these models lack.
    """

    schedule: StageSchedule
    available_dims: tuple[str, ...] = ("width", "depth")
    progressivity: tuple[str, ...] = ("kernel", "depth", "width")
    width: WidthElasticity = WidthElasticity()
    depth: DepthElasticity = DepthElasticity()
    bn_adaptation_samples: int = 2000

    @classmethod
    def read(cls, section: Section) -> "TrainingSettings":
        """Read `bootstrapNAS.training`.

        Raises:
            ValueError: for an unknown key, a bad value, or what hf-nas has not, with the reason.
        """
        section.check_keys(
            ("algorithm", "progressivity_of_elasticity", "batchnorm_adaptation", "schedule", "elasticity",
             "lr_schedule"),
            _REFUSED_IN_TRAINING,
        )  # fmt: skip
        section.text("algorithm", None, ("progressive_shrinking",))
        elasticity = section.section("elasticity")
        elasticity.check_keys(("available_elasticity_dims", "width", "depth"), _REFUSED_IN_ELASTICITY)
        available = elasticity.strings("available_elasticity_dims", cls.available_dims)
        for dimension in available:
            if dimension not in cls.available_dims:
                reason = "these models have no convolutions" if dimension == "kernel" else "there is no such dimension"
                raise elasticity.error("available_elasticity_dims", f"{reason}; choose from 'width' and 'depth'")
        depth = DepthElasticity.read(elasticity.section("depth"))
        if "depth" in available and depth.skipped_blocks is None:
            raise ValueError(
                f"{section.source}: {elasticity.key_path('depth.skipped_blocks')!r} is missing, by which NNCF would "
                "search blocks in its graph; list the blocks, or leave 'depth' out of 'available_elasticity_dims'."
            )
        schedule = StageSchedule.from_nncf(section.data, f"{section.source}: {section.path!r}")
        if any(stage.bn_adapt for stage in schedule.stages):
            logger.info("%s: 'bn_adapt' has no effect on models without BatchNorm layers.", section.source)
        return cls(
            schedule=schedule,
            available_dims=available,
            progressivity=section.strings("progressivity_of_elasticity", cls.progressivity),
            width=WidthElasticity.read(elasticity.section("width")),
            depth=depth,
            bn_adaptation_samples=read_bn_adaptation(section),
        )


@dataclass(frozen=True)
class NncfConfig:
    """One configuration file.

    Args:
        input_info: the model's inputs.
        log_dir: where reports go; None: into the output folder.
        target_device: has no effect, since it chooses among quantizations.
        movement: how importance is learned by movement sparsity, if it is.
        training: how the super-network is trained, if it is.
        search: how it is searched, if it is.
        movement_sparsity_total_epochs: epochs of the importance training.
        model_name_or_path: model that takes the place of the script's flag.
        kd_teacher_model: teacher that takes the place of the script's flag.
        kd_mode: "original", the teacher's logits.
        kd_temperature: of the distillation.
        source: what error messages call it; it makes no difference between values.
    """

    input_info: tuple[InputInfo, ...]
    log_dir: str | None = None
    target_device: str = "ANY"
    movement: MovementSettings | None = None
    training: TrainingSettings | None = None
    search: SearchSettings | None = None
    movement_sparsity_total_epochs: int | None = None
    model_name_or_path: str | None = None
    kd_teacher_model: str | None = None
    kd_mode: str = "original"
    kd_temperature: float = 2.0
    source: str = field(default="The NNCF configuration", compare=False, repr=False)

    @property
    def sequence_length(self) -> int:
        """Tokens of the (encoder's) input."""
        return next((info for info in self.input_info if not info.of_decoder), self.input_info[0]).sequence_length

    @property
    def lengths(self) -> tuple[int, int | None]:
        """Tokens of the input, and of the decoder's where that has a length of its own."""
        own = next((info.sequence_length for info in self.input_info if info.of_decoder), None)
        return self.sequence_length, own

    @property
    def model_class(self) -> str | None:
        """Name of the model class that the configuration was written for, if it names a node of it."""
        if self.training is None:
            return None
        groups = self.training.width.overwrite_groups or ()
        blocks = self.training.depth.skipped_blocks or ()
        return next((names[0].split("/")[0] for names in (*groups, *blocks)), None)

    @classmethod
    def load(cls, path: str | Path) -> "NncfConfig":
        """Read a file; comments and trailing commas are allowed.

        Raises:
            ValueError: if it cannot be read, misses a key, or has a key or value that cannot be honoured.
        """
        return cls.from_dict(read_file(path), f"Configuration {str(path)!r}")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: str = "The NNCF configuration") -> "NncfConfig":
        """Read the contents of a file.

        Args:
            data: the contents.
            source: what error messages call the file.

        Raises:
            ValueError: as [`NncfConfig.load`].
        """
        root = Section(data, source)
        root.check_keys(_ROOT_KEYS, _REFUSED_AT_ROOT)
        nas = root.section("bootstrapNAS")
        nas.check_keys(("training", "search"))
        if root.text("kd_mode", cls.kd_mode) != cls.kd_mode:
            raise root.error(
                "kd_mode",
                "hf-nas does not compare attention maps, which sub-networks with fewer heads do not have; choose "
                "'original', the logits",
            )
        device = root.text("target_device", cls.target_device, _TARGET_DEVICES)
        if device != cls.target_device:
            logger.info("%s: 'target_device' has no effect, since it chooses among quantizations.", source)
        return cls(
            source=source,
            input_info=_read_input_info(root),
            log_dir=root.text("log_dir", None),
            target_device=device,
            movement=_read_movement(root),
            training=TrainingSettings.read(nas.section("training")) if "training" in nas else None,
            search=SearchSettings.read(nas.section("search")) if "search" in nas else None,
            movement_sparsity_total_epochs=root.integer("movement_sparsity_total_epochs", None, low=1),
            model_name_or_path=root.text("model_name_or_path", None),
            kd_teacher_model=root.text("kd_teacher_model", None),
            kd_temperature=root.number("kd_temperature", cls.kd_temperature, above=0),
        )


def _read_input_info(root: Section) -> tuple[InputInfo, ...]:
    inputs = tuple(InputInfo.read(section) for section in root.sections("input_info"))
    if not inputs:
        raise ValueError(
            f"{root.source}: 'input_info' is missing or empty; add the input with its 'sample_size', such as [1, 128]."
        )
    lengths = {info.sequence_length for info in inputs if not info.of_decoder}
    if len(lengths) > 1:
        raise ValueError(
            f"{root.source}: 'input_info' has inputs of {' and '.join(map(str, sorted(lengths)))} tokens; give all "
            "the same length."
        )
    return inputs


def _read_movement(root: Section) -> MovementSettings | None:
    found: MovementSettings | None = None
    for entry in root.sections("compression"):
        if entry.text("algorithm") != "movement_sparsity":
            raise entry.error(
                "algorithm",
                "of NNCF's compression hf-nas has only 'movement_sparsity'; remove the entry and compress what the "
                "search found with NNCF 3",
            )
        if found is not None:
            raise ValueError(f"{root.source}: {entry.path!r} is a second movement_sparsity; give one.")
        settings = dict(entry.data)
        # The one at the root holds for all algorithms that have none.
        multiplier = root.number("compression_lr_multiplier", None, low=0)
        if multiplier is not None:
            settings.setdefault("compression_lr_multiplier", multiplier)
        found = MovementSettings.from_nncf(settings, f"{root.source}: {entry.path!r}")
    if found is None and "compression_lr_multiplier" in root:
        raise root.error("compression_lr_multiplier", "there is no 'compression' it could belong to; remove it")
    return found
