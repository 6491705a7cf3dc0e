"""What the configuration of a model says about the order its units were put in, so that it does not happen twice."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig


_BY, _DIGEST = "hf_nas_reordered_by", "hf_nas_reordered_scores"


@dataclass(frozen=True)
class OrderRecord:
    """By which importance the units of a model were sorted.

    Scores belong to the order that the units had when they were computed. Applied once more to the sorted model they
    would leave the model as it is and give its sub-networks the wrong units.

    Args:
        importance: name of the importance.
        digest: of the scores.
    """

    importance: str
    digest: str | None = None

    @classmethod
    def of(cls, importance: str, scores: Mapping[str, torch.Tensor]) -> "OrderRecord":
        """The record of sorting by these scores."""
        digest = hashlib.blake2b(digest_size=16)
        for name in sorted(scores):
            digest.update(name.encode())
            digest.update(scores[name].detach().cpu().to(torch.float32).contiguous().numpy().tobytes())
        return cls(importance, digest.hexdigest())

    @classmethod
    def read(cls, config: PreTrainedConfig | Mapping[str, Any]) -> "OrderRecord | None":
        """What a configuration (or the content of its file) says, None if the units have the order of the family."""
        fields = config if isinstance(config, Mapping) else vars(config)
        importance = fields.get(_BY)
        return None if importance is None else cls(importance, fields.get(_DIGEST))

    def write(self, config: PreTrainedConfig) -> None:
        """Keep it in a configuration."""
        setattr(config, _BY, self.importance)
        setattr(config, _DIGEST, self.digest)

    @staticmethod
    def forget(config: PreTrainedConfig) -> None:
        """From now on the order of the units is the one that scores are computed in."""
        for name in (_BY, _DIGEST):
            if hasattr(config, name):
                delattr(config, name)
