"""Gates: a multiplier for each unit, attached by hooks."""

from hf_nas.gates.hooks import Gates, binary_gates


__all__ = ["Gates", "binary_gates"]
