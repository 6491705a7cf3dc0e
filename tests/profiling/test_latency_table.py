"""The latency table: its arithmetic against machines whose costs are known, and a look at a real one."""

import itertools
import json

import numpy as np
import pytest

from hf_nas import SubNetwork, SuperNetwork, describe, extract
from hf_nas.profiling import Latency, LatencyPlan, LatencyTable, latency_table
from hf_nas.profiling.probes import own_bias_kinds
from hf_nas.subnetwork import NORM_ONLY, kept_ids
from tests import zoo


SETTINGS = {"batch_size": 2, "sequence_length": 16, "decoder_length": None, "machine": {"device": "none"}}


class Costs:
    """A machine on which a network costs a sum over its sub-layers, and what makes networks more than their sum.

    Args:
        layer: seconds of a layer with anything in it, which networks with one kind of sub-layer hide in its cost.
        company: factor on sub-layers that are not alone in their layer.
        own_bias: seconds of an attention that computes its own position bias.
        noise: standard deviation of every measurement, as a fraction.
    """

    def __init__(self, layer: float = 0.0, company: float = 1.0, own_bias: float = 0.0, noise: float = 0.0):
        self.layer, self.company, self.own_bias = layer, company, own_bias
        self.noise, self.rng = noise, np.random.default_rng(0)

    def __call__(self, structure, sub_network: SubNetwork) -> float:
        layers: dict[tuple[str, int], list[float]] = {}
        for sub_layer, kept in zip(structure, sub_network.kept):
            if kept is None:
                continue
            count = len(kept_ids(kept))
            fixed = 0.3 if kept == NORM_ONLY else 0.4
            per_unit = {"attention": 1.0, "cross_attention": 1.3, "feed_forward": 0.2}[sub_layer.kind]
            seconds = fixed + per_unit * count
            if count and f"{sub_layer.stack}.{sub_layer.kind}" in own_bias_kinds(structure, sub_network):
                seconds += self.own_bias
            layers.setdefault((sub_layer.stack, sub_layer.layer), []).append(seconds)
        total = sum(sum(layer) * (self.company if len(layer) > 1 else 1) + self.layer for layer in layers.values())
        return (2.0 + total) * 1e-3 * (1 + self.noise * self.rng.standard_normal())


def fitted(structure, costs: Costs, **options) -> LatencyTable:
    plan = LatencyPlan.of(structure, **options)
    return LatencyTable.fit(plan, [costs(structure, sub_network) for sub_network in plan.sub_networks], SETTINGS)


def errors(table: LatencyTable, costs: Costs, count: int = 40) -> np.ndarray:
    """Relative errors on networks that the table never saw, the smallest and largest included."""
    others = LatencyPlan.of(table.structure, num_networks=count, seed=99)
    networks = [others.empty, *others.networks]
    exact = Costs(costs.layer, costs.company, costs.own_bias)
    return np.array([table.predict(n) / exact(table.structure, n) - 1 for n in networks])


@pytest.mark.parametrize("name", zoo.FAMILIES)
def test_sums_of_parts_are_exact(name: str) -> None:
    costs = Costs(own_bias=0.5)
    model = zoo.build(name)
    table = fitted(describe(model), costs)
    assert np.abs(errors(table, costs)).max() < 1e-9
    assert table.constant == pytest.approx(2e-3) and table.shared == pytest.approx(0, abs=1e-12)
    for case, sub_network in zoo.corner_cases(model).items():
        assert table.predict(sub_network) == pytest.approx(costs(table.structure, sub_network)), case


@pytest.mark.parametrize("name", ["bert", "llama", "bart"])
def test_what_sub_layers_share_is_fitted(name: str) -> None:
    """A layer costs something once, which the sum over its sub-layers counts for each of them."""
    structure, costs = describe(zoo.build(name, **LARGER.get(name, {}))), Costs(layer=0.6)
    table = fitted(structure, costs)
    uncorrected = LatencyTable(structure, table.constant, 0.0, 0.0, table.curves, SETTINGS)
    assert table.shared == pytest.approx(0.6e-3, rel=0.05)
    assert np.abs(errors(table, costs)).max() < 0.02
    assert np.abs(errors(uncorrected, costs)).max() > 0.1


LARGER = {
    "bert": {"num_hidden_layers": 6, "hidden_size": 96, "num_attention_heads": 12, "intermediate_size": 96},
    "llama": {"num_hidden_layers": 6},
    "bart": {"encoder_layers": 5, "decoder_layers": 4},
}


@pytest.mark.parametrize("company", [0.94, 1.06])
def test_layers_that_cost_another_share_than_their_parts(company: float) -> None:
    costs = Costs(layer=0.2, company=company)
    table = fitted(describe(zoo.build("bert", **LARGER["bert"])), costs)
    assert table.company == pytest.approx(company - 1, abs=0.015)
    assert np.abs(errors(table, costs)).max() < 0.02
    # Networks with a single kind of sub-layer do not pay for it.
    for probe in LatencyPlan.of(table.structure).probes:
        exact = costs(table.structure, probe.sub_network)
        assert table.predict(probe.sub_network) == pytest.approx(exact, rel=0.01)


def test_noise_of_two_percent_stays_below_five() -> None:
    costs = Costs(layer=0.2, noise=0.02)
    table = fitted(describe(zoo.build("bert", **LARGER["bert"])), costs)
    assert np.abs(errors(table, costs)).max() < 0.05


def test_cost_is_interpolated_between_the_widths() -> None:
    structure = describe(zoo.build("bert", intermediate_size=100))
    plan = LatencyPlan.of(structure, widths={"encoder.feed_forward": (50,), "encoder.attention": (2,)})

    def steps(sub_network: SubNetwork) -> float:
        """Neurons cost by the square."""
        return 1.0 + sum((0 if n is None else n) ** 2 for n in sub_network.counts()[1::2])

    table = LatencyTable.fit(plan, [steps(network) for network in plan.sub_networks], SETTINGS)
    seconds = [
        table.predict(SubNetwork.of(structure, {**dict.fromkeys(structure.names), "encoder.0.feed_forward": count}))
        for count in (0, 1, 50, 75, 100)
    ]
    relative = np.diff(seconds) / (seconds[-1] - seconds[0])
    assert relative == pytest.approx(np.diff([0, 1, 2500, 6250, 10000]) / 10000)


def test_costs_never_fall_with_units_whatever_is_measured() -> None:
    structure, costs = describe(zoo.build("bert", **LARGER["bert"])), Costs(noise=0.2)
    table = fitted(structure, costs)
    full = SubNetwork.full(structure)
    for name, units in zip(full.names, full.units):
        predicted = [table.predict(SubNetwork.of(structure, {name: count})) for count in range(units + 1)]
        assert predicted == sorted(predicted)


def test_kept_ids_cost_as_their_number_and_order_does_not_matter() -> None:
    structure = describe(zoo.build("bert"))
    table = fitted(structure, Costs())
    first = SubNetwork.of(structure, {"encoder.0.attention": 2, "encoder.1.feed_forward": 5})
    other = SubNetwork.of(structure, {"encoder.0.attention": [1, 3], "encoder.1.feed_forward": [2, 3, 9, 11, 20]})
    assert table.predict(first) == table.predict(other)


def test_a_model_that_was_cut_already() -> None:
    model = zoo.build("bert")
    cut = {"encoder.0.attention": 1, "encoder.1.attention": None, "encoder.2.feed_forward": NORM_ONLY}
    structure, costs = describe(extract(model, SubNetwork.of(describe(model), cut))), Costs()
    table = fitted(structure, costs)
    assert np.abs(errors(table, costs)).max() < 1e-9


def test_files(tmp_path) -> None:
    structure = describe(zoo.build("t5"))
    table = fitted(structure, Costs(layer=0.3, own_bias=0.4))
    table.save(tmp_path / "table.json")
    read = LatencyTable.load(tmp_path / "table.json", structure)
    networks = LatencyPlan.of(structure, num_networks=9, seed=3).sub_networks
    assert [read.predict(network) for network in networks] == [table.predict(network) for network in networks]
    assert read.to_dict() == table.to_dict() and read.settings == SETTINGS
    assert json.loads((tmp_path / "table.json").read_text())["machine"] == {"device": "none"}
    with pytest.raises(ValueError, match="belongs to another t5 model than this bert model"):
        LatencyTable.load(tmp_path / "table.json", describe(zoo.build("bert")))
    with pytest.raises(ValueError, match="belongs to another t5 model"):
        LatencyTable.load(tmp_path / "table.json", describe(zoo.build("t5", d_ff=16)))
    with pytest.raises(ValueError, match="Not a latency table: its 'format' is 'other'"):
        LatencyTable.from_dict({"format": "other"}, structure)


def test_refusals() -> None:
    structure = describe(zoo.build("bert"))
    plan = LatencyPlan.of(structure)
    count = len(plan.sub_networks)
    with pytest.raises(ValueError, match=f"3 measurements are given for {count} networks"):
        LatencyTable.fit(plan, [1.0] * 3, SETTINGS)
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="give positive, finite times"):
            LatencyTable.fit(plan, [1.0] * (count - 1) + [wrong], SETTINGS)
    with pytest.raises(ValueError, match="no curve for 'encoder.attention'"):
        LatencyTable(structure, 1.0, 0.0, 0.0, {}, SETTINGS)
    with pytest.raises(ValueError, match="belongs to a llama model"):
        fitted(structure, Costs()).predict(SubNetwork.full(describe(zoo.build("llama"))))
    model = zoo.build("bert")
    with SuperNetwork(model), pytest.raises(ValueError, match="super-network is attached"):
        LatencyTable.measure(model, progress=False)


def fake_measurements(monkeypatch, costs: Costs, speeds) -> list:
    """Measure by what is in the models instead of by a clock; the machine has another speed in every call."""
    calls = []

    def measure(models, *, batch_size, sequence_length, decoder_length, repeats, **options):
        structures = [describe(model) for model in models]
        speed = next(speeds)
        seconds = [costs(structure, SubNetwork.full(structure)) * speed for structure in structures]
        calls.append((len(models), batch_size, sequence_length, decoder_length, repeats))
        return [Latency((value,) * repeats, batch_size, sequence_length, decoder_length) for value in seconds]

    monkeypatch.setattr(latency_table, "measure_latencies", measure)
    return calls


@pytest.mark.parametrize("build", [None, extract])
def test_measure_and_check(monkeypatch, build) -> None:
    costs = Costs(layer=0.5)
    calls = fake_measurements(monkeypatch, costs, iter([1.0, 1.25]))
    model = zoo.build("bert")
    table = LatencyTable.measure(model, 4, 16, widths=3, num_networks=6, repeats=3, progress=False)
    assert table.settings["machine"]["device"] == "cpu"
    networks = [*LatencyPlan.of(table.structure, seed=4).networks, zoo.corner_cases(model)["all attention gone"]]
    found = table.check(model, networks, repeats=2, progress=False, **({} if build is None else {"build": build}))
    assert calls == [(len(LatencyPlan.of(table.structure, widths=3, num_networks=6).sub_networks), 4, 16, None, 3),
                     (len(networks) + 1, 4, 16, None, 2)]  # fmt: skip
    for error, network in zip(found, networks):
        assert error.sub_network == network and error.predicted == table.predict(network)
        # The machine is a quarter slower now, which the seconds show and the ratio does not.
        assert error.error == pytest.approx(1 / 1.25 - 1, abs=0.03)
        assert error.error_of_ratio == pytest.approx(0, abs=0.03)
        assert error.measured == pytest.approx(1.25 * costs(table.structure, network))
        assert json.loads(json.dumps(error.to_dict()))["error"] == error.error


def test_a_table_of_real_time() -> None:
    model = zoo.build("bert", num_hidden_layers=4, hidden_size=64, intermediate_size=1024)
    table = LatencyTable.measure(model, 8, 32, widths=2, num_networks=2, repeats=2, progress=False)
    plan = LatencyPlan.of(table.structure)
    assert 0 < table.predict(plan.empty) < table.predict(plan.networks[0])
    assert all(seconds > 0 for seconds in map(table.predict, plan.sub_networks))
    assert table.settings["batch_size"] == 8 and table.settings["sequence_length"] == 32
    counts = itertools.chain(*(curve.counts for curve in table.curves.values()))
    assert max(counts) == 1024
