"""What a sub-network costs: parameters and multiply-accumulate operations, counted without building it."""

from hf_nas.profiling.size import Parts, SizeTable


__all__ = ["Parts", "SizeTable"]
