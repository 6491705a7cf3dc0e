"""What a pruning spends its target on, and how the target is met in it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from hf_nas.gates import GateValues, UnitGates, project
from hf_nas.main_input import SequenceLengths
from hf_nas.profiling import LatencyTable, UnitCosts, linear_costs, mac_costs, parameter_costs
from hf_nas.structures import describe
from hf_nas.subnetwork import SubNetwork
from trainer_plugins.arguments.pruning import BUDGETS


LATENCY_FILE = "latency.json"
# By so much more is asked for at least, and so many halvings find how little is enough.
_STEP, _HALVINGS = 0.005, 8
_ROUNDING = 1e-9


@dataclass(frozen=True)
class PruningBudget:
    """A measure of size, by the costs that gates are trained with and as it is.

    Args:
        costs: of each unit, which add up to the measure, or nearly so.
        predict: the measure of a sub-network, where the costs do not add up to it exactly.
    """

    costs: UnitCosts
    predict: Callable[[SubNetwork], float] | None = None

    @classmethod
    def of(
        cls, name: str, model: PreTrainedModel, folder: Path, lengths: SequenceLengths, batch_size: int
    ) -> "PruningBudget":
        """The budget of a name; latencies are measured once for a folder, so that a run that goes on has the same.

        Args:
            name: "params", "macs" or "latency".
            model: without gates.
            folder: of the training.
            lengths: of a sequence.
            batch_size: sequences of a pass whose latency counts.

        Raises:
            ValueError: for another name.
        """
        if name == "params":
            return cls(parameter_costs(model))
        if name == "macs":
            return cls(mac_costs(model, *lengths))
        if name != "latency":
            raise ValueError(f"pruning_budget is {name!r}; choose one of {', '.join(BUDGETS)}.")
        path = folder / LATENCY_FILE
        if not path.is_file():
            LatencyTable.measure(model, batch_size, **lengths._asdict()).save(path)
        predict = LatencyTable.load(path, describe(model)).predict
        return cls(linear_costs(model, predict), predict)

    def sparsity(self, sub_network: SubNetwork) -> float:
        """The fraction of the measure that is gone."""
        if self.predict is None:
            return self.costs.sparsity(sub_network)
        return 1 - self.predict(sub_network) / self.costs.total

    def project(self, gates: UnitGates, target: float) -> GateValues:
        """Choose units by their gates so that the target is met.

        Where the costs do not add up to the measure, as much of them is asked for as the measure itself needs.

        Raises:
            ValueError: if even closing everything that has gates misses the target.
        """
        if self.predict is None:
            return project(gates, self.costs, target)
        most = self._most(gates)
        too_little, enough = 0.0, min(target, most)
        values, realised = self._ask(gates, enough)
        while realised < target:
            if enough >= most:
                raise ValueError(
                    f"The target sparsity {target:g} cannot be met by pruning {', '.join(gates.kinds)}: the most they "
                    f"can do is {realised:.4f}; lower the target or prune more kinds of units."
                )
            too_little, enough = enough, min(enough + max(target - realised, _STEP), most)
            values, realised = self._ask(gates, enough)
        for _ in range(_HALVINGS):
            middle = (too_little + enough) / 2
            found, realised = self._ask(gates, middle)
            if realised < target:
                too_little = middle
            else:
                enough, values = middle, found
        return values

    def _most(self, gates: UnitGates) -> float:
        """What is gone by the costs when all gates are closed."""
        own = gates.own_values()
        # A sub-layer without units is closed as a whole.
        closed = SubNetwork.of(gates.structure, dict.fromkeys((*own.units, *own.sub_layers)))
        return self.costs.sparsity(closed) - _ROUNDING

    def _ask(self, gates: UnitGates, target: float) -> tuple[GateValues, float]:
        """The choice that meets a target by the costs, and what that is as measured."""
        values = project(gates, self.costs, target)
        return values, self.sparsity(values.sub_network(gates.structure))
