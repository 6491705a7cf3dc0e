"""The masked forward of BERT and RoBERTa as CoFi designed it, in plain tensor operations on the dense weights.

Written from the formulas, apart from the library: no module of transformers or hf-nas takes part.
"""

import torch
from torch.nn.functional import gelu
from transformers import PreTrainedModel

from hf_nas.gates import GateValues


class MaskedBert:
    """Computes logits with soft or binary masks.

    Args:
        model: dense, of which only weights and configuration are read.
        values: masks; what they do not name is 1.
    """

    def __init__(self, model: PreTrainedModel, values: GateValues):
        self.weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        self.config = model.config
        self.prefix = model.base_model_prefix
        self.values = values
        hidden = values.hidden
        self.m = torch.ones(self.config.hidden_size) if hidden is None else hidden
        self.kept = self.m != 0

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Statistics and affine over the kept dimensions only; the others pass through."""
        inside = x[..., self.kept]
        centred = inside - inside.mean(-1, keepdim=True)
        scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + self.config.layer_norm_eps).sqrt()
        result = x.clone()
        result[..., self.kept] = (
            scaled * self.weights[f"{name}.weight"][self.kept] + self.weights[f"{name}.bias"][self.kept]
        )
        return result

    def stream(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> list[torch.Tensor]:
        """The residual stream after the embeddings and each layer."""
        name = f"{self.prefix}.embeddings"
        positions = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        if self.config.model_type == "roberta":
            pad = self.config.pad_token_id
            real = (input_ids != pad).long()
            positions = real.cumsum(1) * real + pad
        x = self.weights[f"{name}.word_embeddings.weight"][input_ids]
        x = x + self.weights[f"{name}.position_embeddings.weight"][positions]
        x = (x + self.weights[f"{name}.token_type_embeddings.weight"][0]) * self.m
        states = [self._norm(f"{name}.LayerNorm", x) * self.m]
        for layer in range(self.config.num_hidden_layers):
            states.append(self._feed_forward(layer, self._attention(layer, states[-1], attention_mask)))
        return states

    def _gates(self, layer: int, kind: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        key = f"encoder.{layer}.{kind}"
        return self.values.units.get(key, torch.ones(count)), self.values.sub_layers.get(key, torch.ones(()))

    def _attention(self, layer: int, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        name = f"{self.prefix}.encoder.layer.{layer}.attention"
        heads = self.config.num_attention_heads
        size = self.config.hidden_size // heads
        head_z, layer_z = self._gates(layer, "attention", heads)
        if layer_z == 0:
            return x
        query, key, value = (
            self._linear(f"{name}.self.{part}", x).unflatten(-1, (heads, size)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        scores = query @ key.transpose(2, 3) / size**0.5
        scores = scores.masked_fill(attention_mask[:, None, None, :] == 0, float("-inf"))
        context = scores.softmax(-1) @ value * head_z.view(1, heads, 1, 1)
        branch = self._linear(f"{name}.output.dense", context.transpose(1, 2).flatten(2)) * layer_z
        return self._norm(f"{name}.output.LayerNorm", branch * self.m + x) * self.m

    def _feed_forward(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        name = f"{self.prefix}.encoder.layer.{layer}"
        neuron_z, layer_z = self._gates(layer, "feed_forward", self.config.intermediate_size)
        if layer_z == 0:
            return x
        inner = gelu(self._linear(f"{name}.intermediate.dense", x)) * neuron_z
        branch = self._linear(f"{name}.output.dense", inner) * layer_z
        return self._norm(f"{name}.output.LayerNorm", branch * self.m + x) * self.m

    def logits(self, inputs: dict) -> torch.Tensor:
        """Logits of the task head; of those that read every token, at the positions that are not padding."""
        x = self.stream(inputs["input_ids"], inputs["attention_mask"])[-1]
        real = inputs["attention_mask"].bool()
        if "qa_outputs.weight" in self.weights:
            return self._linear("qa_outputs", x)[real]
        if "classifier.out_proj.weight" in self.weights:
            return self._linear("classifier.out_proj", self._linear("classifier.dense", x[:, 0]).tanh())
        if "cls.predictions.decoder.weight" in self.weights:
            x = gelu(self._linear("cls.predictions.transform.dense", x))
            x = self._norm("cls.predictions.transform.LayerNorm", x) * self.m * self.kept
            return self._linear("cls.predictions.decoder", x)[real]
        if f"{self.prefix}.pooler.dense.weight" in self.weights:
            x = self._linear(f"{self.prefix}.pooler.dense", x[:, 0]).tanh()
            return self._linear("classifier", x)
        return self._linear("classifier", x)[real]


def model_logits(model: PreTrainedModel, inputs: dict) -> torch.Tensor:
    """The same logits of a model of transformers."""
    with torch.no_grad():
        outputs = model(**inputs)
    if "start_logits" in outputs:
        result = torch.stack([outputs.start_logits, outputs.end_logits], -1)
    else:
        result = outputs.logits
    return result[inputs["attention_mask"].bool()] if result.dim() == 3 else result


def build(model_class: type[PreTrainedModel], seed: int = 0, **changes) -> PreTrainedModel:
    """A tiny random model with uneven sizes everywhere, in which no weight has its default value."""
    sizes = {
        "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 20,
        "max_position_embeddings": 40, "pad_token_id": 1, "num_labels": 2, "layer_norm_eps": 1e-6,
    }  # fmt: skip
    torch.manual_seed(seed)
    model = model_class(model_class.config_class(**{**sizes, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def batch(length: int = 7) -> dict:
    """Token ids with padding on the right."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 50, (3, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    mask[2, 2:] = 0
    return {"input_ids": ids.masked_fill(mask == 0, 1), "attention_mask": mask}
