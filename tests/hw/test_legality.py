"""What the engine refuses: the logic against `nnloom.arch.legality`, and how a program ends that it refuses."""

import ast
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from amaranth.sim import Simulator

from nnloom import arch
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.isa import FIELDS, field_width
from nnloom.arch.legality import form_faults
from nnloom.hw import emit
from nnloom.hw.emit import ARCH_MODULES
from nnloom.hw.legality import DescriptorCheck
from tests.sim.test_illegal_programs import CONFIGS, Generator

SMALL = {
    **CONFIGS,
    "dense only": AcceleratorConfig(depthwise=False, max_pool=False, elementwise_add=False),
    "default": AcceleratorConfig(),
    "partial sums": AcceleratorConfig(pixels=2, partial_sums=True),
}


@pytest.mark.parametrize("config", SMALL.values(), ids=SMALL)
def test_the_form_of_a_descriptor_is_judged_as_by_the_definition(config):
    rng = np.random.default_rng(1)
    generator = Generator(config, 3) if config.depthwise else Generator(AcceleratorConfig(), 3)
    cases = []
    for _ in range(1500):
        d = generator.layer()
        for _ in range(int(rng.integers(3))):
            d = generator.changed(d)
        if rng.integers(10) == 0:
            field = FIELDS[int(rng.integers(len(FIELDS)))]
            d = dataclasses.replace(d, **{field.name: int(rng.integers(field.minimum, field.maximum + 1))})
        # Bits that the engine does not look at are refused as they are fetched.
        cut = {f.name: getattr(d, f.name) & (1 << field_width(config, f)) - 1 for f in FIELDS if not f.signed}
        before = None if rng.integers(2) else dataclasses.replace(generator.layer(), table=int(rng.integers(2)))
        cases.append((dataclasses.replace(d, **cut), before))
    dut = DescriptorCheck(config)
    verdicts = []

    async def bench(ctx):
        for d, before in cases:
            words = d.encode()
            ctx.set(dut.descriptor.as_value(), sum(int(w) << 32 * i for i, w in enumerate(words)))
            ctx.set(dut.first, before is None)
            ctx.set(dut.after_table, before is not None and before.table)
            await ctx.tick()
            verdicts.append(ctx.get(dut.illegal))

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
    for (d, before), illegal in zip(cases, verdicts, strict=True):
        faults = list(form_faults(config, d, before=before))
        assert illegal == bool(faults), (d, faults)
    assert 100 < sum(verdicts) < 1400 or not config.depthwise


def test_the_identity_of_the_rtl_covers_all_that_it_is_made_of():
    """Files, errors and tools do not change the RTL, nor do images and regions, whose tensors stream ports are given as
    values; every other module of `arch` that `hw` imports may."""
    used = set()
    sources = [
        *Path(emit.__file__).parent.glob("*.py"),
        *(Path(arch.__file__).parent / f"{m}.py" for m in ARCH_MODULES),
    ]
    for file in sources:
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.ImportFrom):
                continue
            module = node.module or ""
            if module == "nnloom.arch":
                used.update(name.name for name in node.names)
            elif module.startswith("nnloom.arch."):
                used.add(module.removeprefix("nnloom.arch."))
            elif node.level and file.parent.name == "arch":
                used.add(module)
    assert used - {"artifact", "content", "errors", "files", "fpga_tools"} == set(ARCH_MODULES)
