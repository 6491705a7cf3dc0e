"""hf-nas: from a pretrained transformer to a Pareto set of smaller ones.

Importing it also teaches transformers to load models with uneven layers (see `hf_nas.extraction.loading`).
"""

from hf_nas.elastic import SuperNetwork, register_strategy
from hf_nas.extraction import extract, install_loader, save_extracted
from hf_nas.importance import register_importance, reorder
from hf_nas.profiling import Parts, SizeTable
from hf_nas.search import register_search_method, search
from hf_nas.space import get_search_space, register_search_space
from hf_nas.structures import describe, known_families, register_family
from hf_nas.subnetwork import SubNetwork
from hf_nas.version import __version__


__all__ = [
    "Parts",
    "SizeTable",
    "SubNetwork",
    "SuperNetwork",
    "__version__",
    "describe",
    "extract",
    "get_search_space",
    "install_loader",
    "known_families",
    "register_family",
    "register_importance",
    "register_search_method",
    "register_search_space",
    "register_strategy",
    "reorder",
    "save_extracted",
    "search",
]

install_loader()
