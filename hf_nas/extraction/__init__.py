"""Extraction: a sub-network made into a small model with its own checkpoint, and loading it again."""

from hf_nas.extraction.extract import extract
from hf_nas.extraction.loading import install_loader
from hf_nas.extraction.saving import is_stock, save_extracted


__all__ = ["extract", "install_loader", "is_stock", "save_extracted"]
