"""Modules under the names that NNCF 2.x gives them."""

import pytest

from hf_nas.graph_names import graph_name, module_path
from tests import zoo


LAYER = "BertForSequenceClassification/BertModel[bert]/BertEncoder[encoder]/ModuleList[layer]/BertLayer[1]"


@pytest.mark.parametrize(
    "path, name",
    [
        ("attention.self.query", "BertAttention[attention]/BertSelfAttention[self]/NNCFLinear[query]/linear_0"),
        ("attention.output.LayerNorm",
         "BertAttention[attention]/BertSelfOutput[output]/NNCFLayerNorm[LayerNorm]/layer_norm_0"),
        ("intermediate.dense", "BertIntermediate[intermediate]/NNCFLinear[dense]/linear_0"),
    ],
)  # fmt: skip
def test_names_of_the_published_configurations(path: str, name: str) -> None:
    assert graph_name(zoo.build("bert"), f"bert.encoder.layer.1.{path}") == f"{LAYER}/{name}"
    assert module_path(f"{LAYER}/{name}") == f"bert.encoder.layer.1.{path}"


def test_a_node_may_be_an_operation_or_a_module() -> None:
    assert module_path(f"{LAYER}/BertOutput[output]/__add___0") == "bert.encoder.layer.1.output"
    assert module_path("BertModel/BertEmbeddings[embeddings]/Dropout[dropout]") == "embeddings.dropout"


@pytest.mark.parametrize("name", ["", "bert.encoder.layer.0", "BertModel", "BertModel/linear_0", "A/b c[d]/E[f]"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no name of a node"):
        module_path(name)
