"""Gates: a multiplier for each unit of a full-size model, by hooks.

Nothing gets smaller or faster; gates are for what must be differentiable, and for checking what slices compute.
"""

from collections.abc import Mapping

import torch
from transformers import PreTrainedModel

from hf_nas.bypass import first_argument
from hf_nas.structures import NORM_ONLY, ModelStructure, SubLayer, describe
from hf_nas.subnetwork import SubNetwork, kept_ids


# A multiplier for each unit, or what a sub-layer without units is: `NORM_ONLY` or None (skipped).
Gate = torch.Tensor | str | None


def binary_gates(structure: ModelStructure, sub_network: SubNetwork) -> dict[str, Gate]:
    """Ones for the kept and zeros for the other units of each sub-layer; `NORM_ONLY` and None as they are.

    Raises:
        ValueError: if the sub-network leaves out hidden dimensions, of which [`Gates`] knows nothing.
    """
    sub_network.require_full_width("a binary gate for each unit")
    gates: dict[str, Gate] = {}
    for sub_layer in structure:
        kept = sub_network[sub_layer.name]
        if kept is None or kept == NORM_ONLY:
            gates[sub_layer.name] = kept
            continue
        gate = torch.zeros(sub_layer.units)
        gate[torch.tensor(kept_ids(kept), dtype=torch.long)] = 1.0
        gates[sub_layer.name] = gate
    return gates


class Gates:
    """Multiplies the units of a stock model with gates until removed.

    The gate of a unit multiplies what its sub-layer's output projection reads, after the activation function: a zero
    there removes exactly the unit, and the bias of the output projection stays. None bypasses the sub-layer,
    `NORM_ONLY` all of it but the normalisation.

    Args:
        model: of a known family.
        gates: by sub-layer name, a tensor of shape `(units,)`, `NORM_ONLY` or None; sub-layers not named are not
            touched. Tensors may require a gradient and may be changed in place between passes.
    """

    def __init__(self, model: PreTrainedModel, gates: Mapping[str, Gate]):
        self.structure = describe(model)
        self._handles: list = []
        for name, gate in gates.items():
            sub_layer = self.structure[name]
            if gate is None or isinstance(gate, str):
                self._bypass(model, sub_layer, sub_layer.layout.bypass if gate is None else sub_layer.layout.norm_only)
            else:
                self._gate(model, sub_layer, gate)

    def _gate(self, model: PreTrainedModel, sub_layer: SubLayer, gate: torch.Tensor) -> None:
        def multiply(module, args):
            inputs = args[0]
            expanded = gate.to(device=inputs.device, dtype=inputs.dtype).repeat_interleave(sub_layer.features)
            return (inputs * expanded, *args[1:])

        reader = sub_layer.module(model.base_model, sub_layer.layout.reader)
        self._handles.append(reader.register_forward_pre_hook(multiply))

    def _bypass(self, model: PreTrainedModel, sub_layer: SubLayer, replacements: tuple[tuple[str, str], ...]) -> None:
        for path, kind in replacements:
            if kind == "identity" and path not in sub_layer.layout.norms:
                continue  # the first half of a feed-forward: it only saves time, and the second half still runs here
            module = sub_layer.module(model.base_model, path)

            def replace(module, args, kwargs, output, kind=kind):
                # The module has run, written its cache and computed what it hands on; only its branch is replaced.
                branch = output[0] if isinstance(output, tuple) else output
                if kind.endswith("zeros"):
                    branch = torch.zeros_like(branch)
                else:
                    branch = args[1] if kind == "residual" else first_argument(args, kwargs)
                return (branch, *output[1:]) if isinstance(output, tuple) else branch

            self._handles.append(module.register_forward_hook(replace, with_kwargs=True))

    def remove(self) -> None:
        """Take all hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> "Gates":
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()
