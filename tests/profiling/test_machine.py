"""What is told of the machine that something is measured on."""

import json

import torch

from hf_nas.profiling.machine import describe_machine, machine_words, processor_name
from tests import zoo


def test_the_machine_is_described() -> None:
    machine = describe_machine(zoo.build("bert", attention="eager").to(torch.bfloat16))
    assert machine["device"] == "cpu" and machine["threads"] == torch.get_num_threads()
    assert machine["dtype"] == "bfloat16" and machine["attention"] == "eager"
    assert machine["processor"] == processor_name()
    assert json.loads(json.dumps(machine)) == machine


def test_the_machine_in_words() -> None:
    cpu = {"device": "cpu", "processor": "Some CPU", "threads": 1}
    assert machine_words(cpu) == "cpu (Some CPU, 1 thread)"
    assert machine_words({**cpu, "threads": 8}) == "cpu (Some CPU, 8 threads)"
    assert machine_words({"device": "cuda", "processor": "Some GPU", "threads": 8}) == "cuda (Some GPU)"


def test_the_name_of_the_processor(tmp_path) -> None:
    cpu_info = tmp_path / "cpuinfo"
    cpu_info.write_text("processor\t: 0\nmodel name\t: Some  CPU @ 2 GHz\nprocessor\t: 1\nmodel name\t: Other\n")
    assert processor_name(cpu_info) == "Some CPU @ 2 GHz"
    cpu_info.write_text("processor\t: 0\n")
    assert processor_name(cpu_info) == processor_name(tmp_path / "none") != ""
