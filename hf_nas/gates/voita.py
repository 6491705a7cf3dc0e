"""Hard concrete gates on heads with a penalty on how many are open (Voita et al., 2019)."""

import math

import torch
from transformers import PreTrainedModel

from hf_nas.gates.hard_concrete import HardConcrete
from hf_nas.gates.sampled_gates import SampledGates
from hf_nas.gates.top_k import hard_top_k
from hf_nas.gates.unit_budgets import HeadBudget, head_rows
from hf_nas.structures import describe


_TEMPERATURE = 0.33


class VoitaGates(SampledGates):
    """Gates on the heads of all attentions that the expected number of open ones is charged for.

    The loss term is [`penalty`], which whoever trains adds in training alone. How many heads it leaves depends on its
    strength; to come to a number, either let a [`BudgetController`] with [`head_costs`] take its place, or give a
    budget, by which the gates with the largest logits stay in the end, or both.

    A pass of a training multiplies by samples at temperature 0.33 stretched to (-0.1, 1.1), evaluation by
    `clip(1.2 * sigmoid(logit) - 0.1, 0, 1)`, which is 0 up to logits of -2.398. What stays in the end is binary.

    Args:
        model: of a known family.
        l0_penalty: for each gate that is expected to be open, per example-averaged loss (published: 0.0015 for BERT).
        budget: how many heads stay in the end, all of them or by kind; None: those with positive logits. Kinds that a
            budget by kind does not name have no gates.
        seed: of initial logits and draws.

    Raises:
        ValueError: for a budget that does not fit the model or a penalty below 0.
    """

    # How far from 0 a logit gets: as far as the training takes it, since `clamp` limits nothing here.
    logit_limit = math.inf

    def __init__(
        self,
        model: PreTrainedModel,
        l0_penalty: float = 0.0015,
        budget: int | HeadBudget | None = None,
        *,
        seed: int = 0,
    ):
        if not 0 <= l0_penalty < math.inf:
            raise ValueError(f"l0_penalty is {l0_penalty}; give a number of at least 0, such as 0.0015.")
        structure = describe(model)
        if budget is None:
            groups, rows = (), head_rows(structure)
        else:
            budget = budget if isinstance(budget, HeadBudget) else HeadBudget(budget)
            groups = budget.groups(structure)
            rows = tuple(row for own, _ in groups for row in own)
        super().__init__(model, rows, ("heads",), seed)
        self.budget, self.l0_penalty = budget, float(l0_penalty)
        self._parts = tuple((sum(row.units for row in own), count) for own, count in groups)
        generator = torch.Generator().manual_seed(self.seed)
        self.heads = HardConcrete(self.sizes, 0.0, 0.0, _TEMPERATURE, generator=generator)
        # As the published Xavier initialisation of a row of heads, around 0 and not around open.
        bounds = torch.tensor([math.sqrt(6 / (row.units + 1)) for row in rows for _ in range(row.units)])
        with torch.no_grad():
            self.heads.logits.copy_((2 * torch.rand(bounds.shape, generator=generator) - 1) * bounds)
        index = torch.tensor([self.structure.names.index(name) for name in self.names])
        self.register_buffer("_index", index, persistent=False)
        counts = torch.tensor([float(sub_layer.units) for sub_layer in self.structure])
        self.register_buffer("_counts", counts, persistent=False)
        self._start(model)

    def scores(self) -> torch.Tensor:
        """The logits in float32, which unlike the values in evaluation have no ties, shape `(heads,)`."""
        return self.heads.logits.float()

    def sample(self, generator: torch.Generator) -> torch.Tensor:
        """Multipliers in [0, 1] for one pass of a training, shape `(heads,)`."""
        return self.heads.sample(generator=generator)

    def deterministic(self) -> torch.Tensor:
        """Multipliers for evaluation in [0, 1], without the temperature, shape `(heads,)`."""
        stretched = self.heads.low + (self.heads.high - self.heads.low) * torch.sigmoid(self.scores())
        return stretched.clamp(0.0, 1.0)

    def chosen(self) -> torch.Tensor:
        """Which heads stay in the end: by the budget those with the largest logits, or else with positive ones."""
        scores = self.scores().detach()
        if not self._parts:
            return scores > 0
        parts = scores.split([size for size, _ in self._parts])
        return torch.cat([hard_top_k(own, count) for (_, count), own in zip(self._parts, parts)])

    def penalty(self) -> torch.Tensor:
        """What the loss of a training is to be raised by: `l0_penalty` times the expected number of open gates."""
        return self.l0_penalty * self.heads.open_probability().sum()

    def expected_by_part(self) -> list[tuple[float, int]]:
        """For each part of the budget how many heads are expected to be open, and how many stay in the end."""
        parts = self.heads.open_probability().detach().split([size for size, _ in self._parts]) if self._parts else ()
        return [(float(part.sum()), count) for part, (_, count) in zip(parts, self._parts)]

    def expected_open(self) -> tuple[torch.Tensor, torch.Tensor, None]:
        """What is expected to be open, as [`UnitGates.expected_open`] says it; sub-layers as a whole always are."""
        counts = self._counts.index_copy(0, self._index, self.heads.expected_open())
        return counts, torch.ones_like(counts), None
