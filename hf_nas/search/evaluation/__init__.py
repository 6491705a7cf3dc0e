"""The parts of the evaluator: batches on the device, racing, and the shares of several processes."""

from hf_nas.search.evaluation.batches import Batch, batch_factor, in_order, make_batches
from hf_nas.search.evaluation.racing import Racing, Rejected, Rival, accuracy_scores, log_evidence
from hf_nas.search.evaluation.ranks import Gather, Ranks


__all__ = [
    "Batch",
    "Gather",
    "Racing",
    "Ranks",
    "Rejected",
    "Rival",
    "accuracy_scores",
    "batch_factor",
    "in_order",
    "log_evidence",
    "make_batches",
]
