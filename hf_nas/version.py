"""The version of hf-nas."""

__version__ = "0.1.0.dev0"
