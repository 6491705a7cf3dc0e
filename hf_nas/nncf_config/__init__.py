"""Configuration files of NNCF 2.x: reading and writing them, and the search spaces they describe."""

from hf_nas.nncf_config.config import InputInfo, NncfConfig, TrainingSettings
from hf_nas.nncf_config.describe import Cost, SpaceDescription, SubLayerChoices, describe_config, describe_space
from hf_nas.nncf_config.elasticity import DepthElasticity, WidthElasticity, generated_widths
from hf_nas.nncf_config.filter_importance import filter_importance
from hf_nas.nncf_config.numbering import Numbering
from hf_nas.nncf_config.search_settings import SearchSettings
from hf_nas.nncf_config.space import SUB_NETWORK_NAMES, named_sub_network, nncf_space
from hf_nas.nncf_config.writing import to_nncf, with_space, write


__all__ = [
    "SUB_NETWORK_NAMES",
    "Cost",
    "DepthElasticity",
    "InputInfo",
    "NncfConfig",
    "Numbering",
    "SearchSettings",
    "SpaceDescription",
    "SubLayerChoices",
    "TrainingSettings",
    "WidthElasticity",
    "describe_config",
    "describe_space",
    "filter_importance",
    "generated_widths",
    "named_sub_network",
    "nncf_space",
    "to_nncf",
    "with_space",
    "write",
]
