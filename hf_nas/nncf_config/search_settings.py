"""The section `bootstrapNAS.search`."""

import logging
from dataclasses import dataclass
from typing import Any

from hf_nas.nncf_config.reading import Section


__all__ = ["SearchSettings"]

logger = logging.getLogger(__name__)

_REFERENCE_POINTS = "it belongs to RNSGA2, which hf-nas does not have; remove it"
_REFUSED = {
    "aspiration_points": _REFERENCE_POINTS,
    "epsilon": _REFERENCE_POINTS,
    "weights": _REFERENCE_POINTS,
    "extreme_points_as_ref_points": _REFERENCE_POINTS,
}
_LARGE_DROP = 5.0


@dataclass(frozen=True)
class SearchSettings:
    """How the sub-networks are searched.

    Args:
        algorithm: "NSGA2".
        num_evals: evaluations; rounded down to whole generations of `population`.
        population: sub-networks of a generation.
        seed: of the search.
        crossover_prob: probability of a crossover.
        crossover_eta: distribution index of the simulated binary crossover.
        mutation_prob: probability that a variable mutates.
        mutation_eta: distribution index of the polynomial mutation.
        acc_delta: drop of the metric below the reference that the best sub-network may have, in percent.
        ref_acc: reference metric in percent; -1: none given.
        eval_metric_name: metric that is searched, e.g. "eval_f1"; None: the one that the script searches the task
            by (the published scripts take the accuracy in classification, F1 in question answering).
        bn_adaptation_samples: samples to adapt the statistics of BatchNorm layers with, which these models lack.
    """

    algorithm: str = "NSGA2"
    num_evals: int = 3000
    population: int = 40
    seed: int = 0
    crossover_prob: float = 0.9
    crossover_eta: float = 10.0
    mutation_prob: float = 0.02
    mutation_eta: float = 3.0
    acc_delta: float = 1.0
    ref_acc: float = -1.0
    eval_metric_name: str | None = None
    bn_adaptation_samples: int = 2000

    @property
    def generations(self) -> int:
        """Number of generations."""
        return self.num_evals // self.population

    @classmethod
    def read(cls, section: Section) -> "SearchSettings":
        """Read `bootstrapNAS.search`.

        Raises:
            ValueError: for an unknown key, a bad value, an algorithm other than NSGA2, and constraints.
        """
        algorithm = section.text("algorithm")
        if algorithm != "NSGA2":
            reason = "hf-nas has no search by reference points" if algorithm == "RNSGA2" else "there is no such search"
            raise section.error("algorithm", f"{reason}; choose 'NSGA2'")
        section.check_keys(
            ("algorithm", "num_evals", "population", "seed", "crossover_prob", "crossover_eta", "mutation_prob",
             "mutation_eta", "num_constraints", "acc_delta", "ref_acc", "eval_metric_name", "batchnorm_adaptation"),
            _REFUSED,
        )  # fmt: skip
        if section.integer("num_constraints", 0) != 0:
            raise section.error("num_constraints", "the published search evaluates no constraint; give 0")
        settings = cls(
            num_evals=section.integer("num_evals", cls.num_evals, low=1),
            population=section.integer("population", cls.population, low=1),
            seed=section.integer("seed", cls.seed),
            crossover_prob=section.number("crossover_prob", cls.crossover_prob, low=0, high=1),
            crossover_eta=section.number("crossover_eta", cls.crossover_eta, low=0),
            mutation_prob=section.number("mutation_prob", cls.mutation_prob, low=0, high=1),
            mutation_eta=section.number("mutation_eta", cls.mutation_eta, low=0),
            acc_delta=section.number("acc_delta", cls.acc_delta, low=0, high=50),
            ref_acc=section.number("ref_acc", cls.ref_acc, low=-1),
            eval_metric_name=section.text("eval_metric_name", None),
            bn_adaptation_samples=read_bn_adaptation(section),
        )
        if settings.population > settings.num_evals:
            raise section.error(
                "population", f"choose at most the {settings.num_evals} evaluations of 'num_evals', a generation's"
            )
        if settings.acc_delta > _LARGE_DROP:
            logger.warning(
                "%s: %r accepts a drop of %g percent.",
                section.source, section.key_path("acc_delta"), settings.acc_delta,
            )  # fmt: skip
        return settings

    def to_nncf(self) -> dict[str, Any]:
        """The section, in plain JSON types."""
        section = {
            "algorithm": self.algorithm,
            "batchnorm_adaptation": {"num_bn_adaptation_samples": self.bn_adaptation_samples},
            "num_evals": self.num_evals,
            "population": self.population,
            "seed": self.seed,
            "crossover_prob": self.crossover_prob,
            "crossover_eta": self.crossover_eta,
            "mutation_prob": self.mutation_prob,
            "mutation_eta": self.mutation_eta,
            "acc_delta": self.acc_delta,
            "ref_acc": self.ref_acc,
        }
        if self.eval_metric_name is not None:
            section["eval_metric_name"] = self.eval_metric_name
        return section


def read_bn_adaptation(section: Section) -> int:
    """The number of samples in the `batchnorm_adaptation` of a section.

    Raises:
        ValueError: for an unknown key or a number below 0.
    """
    adaptation = section.section("batchnorm_adaptation")
    adaptation.check_keys(("num_bn_adaptation_samples",))
    samples = adaptation.integer("num_bn_adaptation_samples", 2000)
    if "num_bn_adaptation_samples" in adaptation and samples:
        logger.info(
            "%s: %r has no effect on models without BatchNorm layers.",
            section.source, adaptation.key_path("num_bn_adaptation_samples"),
        )  # fmt: skip
    return samples
