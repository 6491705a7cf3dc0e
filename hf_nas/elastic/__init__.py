"""Elastic execution: a stock model that computes as any of its sub-networks."""

from hf_nas.elastic.supernetwork import SuperNetwork, is_elastic, plain_copy_of


__all__ = ["SuperNetwork", "is_elastic", "plain_copy_of"]
