"""Lists whose loads overlap with programs: golden execution in every order they allow, and the proof of their waits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nnloom.arch.artifact import Artifact
from nnloom.arch.dma import AT_ONCE, DmaCommand, DmaDescriptor, encode_list
from nnloom.arch.errors import CapacityError, IllegalProgramError
from nnloom.arch.isa import HostAddress, Register
from nnloom.arch.lists import Lists
from nnloom.arch.overlap_check import check_descriptors, check_lists
from nnloom.compiler.transfers import MemoryTiming
from nnloom.runtime.devices.model import ModelDevice
from nnloom.sim.list_model import ListModel, early, late
from tests.artifacts import SMALL, make_artifact
from tests.compiler.test_strips import tall_graph
from tests.graphs import KINDS, random_graph

CONFIG = replace(SMALL, weight_words=80)
MEMORY = MemoryTiming(data_width=64, latency=13, beat_cycles=1, answer=2)


class Case:
    """A random network whose parts are loaded while others run."""

    def __init__(self, path) -> None:
        self.artifact = Artifact.load(path)
        (self.region,) = self.artifact.manifest.regions
        self.config = self.artifact.manifest.config
        self.lists = Lists.of(self.artifact)
        self.mine = self.lists.regions[self.region.name]
        self.table = 4 * self.lists.image_words
        self.image = self.lists.image(image_address=0, table_address=self.table)
        rng = np.random.default_rng(1)
        self.inputs = [rng.integers(-128, 128, location.shape, np.int8) for location in self.region.inputs]
        model = ModelDevice()
        model.load(self.artifact)
        self.want = model.run_region(self.region, self.inputs).outputs

    def descriptors(self, counting: bool = False) -> list[DmaDescriptor]:
        return self.lists.descriptors(self.mine, counting=counting, image_address=0, table_address=self.table)

    def run(self, descriptors, schedule) -> tuple[list[np.ndarray], list[bytes]]:
        """The outputs, and all that programs have written and lists have stored."""
        memory = np.concatenate([self.image, np.zeros(self.lists.table_words, np.uint32)])
        table = memory[self.lists.image_words :]
        for move, words in zip(self.mine.inputs, self.mine.pack(self.config, self.inputs), strict=True):
            table[move.words] = words
        all_fit = len(self.artifact.tables) <= self.config.tables
        model = ListModel(self.config, self.artifact.tables if all_fit else None)
        model.execute(descriptors, memory, schedule)
        outputs = self.mine.unpack(self.config, [table[move.words] for move in self.mine.outputs])
        written = [t.data.tobytes() + t.granule.tobytes() for traces in model.traces for t in traces]
        return outputs, [*written, table.tobytes()]

    def is_right(self, outputs) -> bool:
        """Whether these are the network's bits."""
        return all(np.array_equal(a, b) for a, b in zip(outputs, self.want, strict=True))


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> list[Case]:
    folder, found = tmp_path_factory.mktemp("lists"), []
    for seed in range(60):
        rng = np.random.default_rng([3, seed])
        # Half of them have more functions than the engine tables.
        graph = random_graph(rng, [str(k) for k in rng.choice(KINDS, 5)], tables=3 * (seed % 2))
        try:
            emitted = make_artifact(folder / str(seed), graph, CONFIG, memory=MEMORY)
        except CapacityError:
            continue
        if emitted.regions[0].region.steps:
            found.append(Case(folder / str(seed)))
        if len(found) == 6:
            return found
    raise AssertionError("too few networks in parts that overlap")


def test_lists_give_the_same_bits_in_every_order(cases):
    overlapping = 0
    for case in cases:
        assert check_lists(CONFIG, case.lists)[case.region.name].beside
        for counting in (False, True):
            descriptors = case.descriptors(counting)
            overlapping += sum(d.under_way > 0 for d in descriptors)
            rng = np.random.default_rng(2)
            for schedule in (late, early, *3 * [lambda count, rng=rng: int(rng.integers(0, count + 1))]):
                assert case.is_right(case.run(descriptors, schedule)[0])
    assert overlapping > 2 * len(cases)


def test_programs_find_their_tables(cases):
    """The proof knows which tables are loaded, and that the accelerator takes none beside a program."""
    loads = 0
    for case in cases:
        plain = case.descriptors()
        mine = [i for i, d in enumerate(plain) if HostAddress.window(d.host_address) == HostAddress.TABLES]
        if len(mine) > 1:
            with pytest.raises(IllegalProgramError, match="table 0, which is not loaded"):
                check_descriptors(CONFIG, [*plain[: mine[0]], *plain[mine[0] + 1 :]], case.image)
        loads += len(mine)
    assert loads


def test_every_wait_that_is_weakened_is_found_or_is_not_needed(cases):
    """One wait at a time, by one program and entirely: what the proof lets pass is written the same in every order."""
    found = harmful = needless = 0
    for case in cases[:3]:
        plain = case.descriptors()
        want = case.run(plain, early)[1]
        for index, d in enumerate(plain):
            for weaker in {min(d.under_way + 1, AT_ONCE), AT_ONCE} - {d.under_way}:
                changed = [*plain[:index], replace(d, under_way=weaker), *plain[index + 1 :]]
                try:
                    check_descriptors(CONFIG, changed, case.image)
                except IllegalProgramError as error:
                    assert f"descriptor {index}: it does not wait" in str(error)
                    found += 1
                    harmful += case.run(changed, late)[1] != want
                else:
                    needless += 1
                    assert case.run(changed, late)[1] == want
    # Some write the same all the same: a counter that is stored too early may be that of the program before, too.
    assert found > 15 and harmful > found // 2 and needless


def test_what_is_not_loaded_is_found(cases):
    """Loads left out, exchanged with their run, or to another place."""
    case = cases[0]
    plain = case.descriptors()
    loads = [i for i, d in enumerate(plain) if d.command == DmaCommand.LOAD and d.ddr_address < case.table]
    assert len(loads) >= 4
    found, want = 0, case.run(plain, early)[1]
    for index in loads:
        without = plain[:index] + plain[index + 1 :]
        try:
            check_descriptors(CONFIG, without, case.image)
        except IllegalProgramError:
            found += 1
        else:
            # The words of a part before are there: only the golden model knows whose they are.
            assert case.run(without, early)[1] != want
    assert found >= 4
    run = next(i for i, d in enumerate(plain) if d.command == DmaCommand.RUN)
    early_run = [plain[run], *plain[:run], *plain[run + 1 :]]
    with pytest.raises(IllegalProgramError):
        check_descriptors(CONFIG, early_run, case.image)


def test_stores_wait_for_programs_and_spare_the_image(cases):
    case = cases[0]
    plain = case.descriptors()
    run = next(i for i, d in enumerate(plain) if d.command == DmaCommand.RUN)
    status = DmaDescriptor(
        command=DmaCommand.STORE, ddr_address=case.table, host_address=Register.STATUS, words=1, under_way=1
    )
    with pytest.raises(IllegalProgramError, match="is refused, while a program runs"):
        check_descriptors(CONFIG, [*plain[: run + 1], status, *plain[run + 1 :]], case.image)
    table = replace(status, command=DmaCommand.LOAD, host_address=HostAddress.TABLES)
    with pytest.raises(IllegalProgramError, match="refuses it"):
        check_descriptors(CONFIG, [*plain[: run + 1], table, *plain[run + 1 :]], case.image)
    with pytest.raises(IllegalProgramError, match="loaded once"):
        check_descriptors(CONFIG, [replace(status, ddr_address=0, under_way=0), *plain], case.image)


def test_activations_are_loaded_beside_programs_that_do_not_use_them(cases):
    """Every granule: those that the program reads or writes, or any layer of it, are refused."""
    case = cases[1]
    plain = case.descriptors()
    run = next(i for i, d in enumerate(plain) if d.command == DmaCommand.RUN)
    used = free = 0
    for granule in range(0, CONFIG.row_banks * CONFIG.bank_granules, 5):
        load = DmaDescriptor(
            command=DmaCommand.RELOAD,
            ddr_address=case.table,
            host_address=HostAddress.ACTIVATIONS + granule * CONFIG.granule,
            words=CONFIG.granule // 4,
            under_way=1,
        )
        beside = [*plain[: run + 1], load, *plain[run + 1 :]]
        try:
            check_descriptors(CONFIG, beside, case.image)
            free += 1
        except IllegalProgramError:
            used += 1
            # Behind the program it may.
            check_descriptors(CONFIG, [*plain[: run + 1], replace(load, under_way=0), *plain[run + 1 :]], case.image)
    assert used and free


def test_lists_move_rows_of_external_tensors(tmp_path):
    """Networks in strips: rows come from external memory and go there, inputs and outputs lie there."""
    config = replace(SMALL, activation_bytes=2048, weight_words=128)
    external = beside = 0
    for seed in range(12):
        try:
            emitted = make_artifact(tmp_path / str(seed), tall_graph(seed), config, memory=MEMORY)
        except CapacityError:
            continue
        region = emitted.regions[0].region
        if region.external:
            case = Case(tmp_path / str(seed))
            beside += check_lists(config, case.lists)[case.region.name].beside
            rng = np.random.default_rng(seed)
            for schedule in (late, early, lambda count, rng=rng: int(rng.integers(0, count + 1))):
                assert case.is_right(case.run(case.descriptors(), schedule)[0])
            external += sum(region.external_number(t) is not None for t in (*region.inputs, *region.outputs))
        if external >= 3 and beside >= 20:
            return
    raise AssertionError("too few external inputs and outputs")


def test_descriptors_come_back():
    rng = np.random.default_rng(3)
    for _ in range(50):
        d = DmaDescriptor(
            command=DmaCommand(int(rng.integers(0, 4))),
            ddr_address=int(rng.integers(0, 1 << 32)),
            host_address=int(rng.integers(0, 1 << 32)),
            words=int(rng.integers(0, 1 << 24)),
            row_words=int(rng.integers(0, 1 << 16)),
            row_step=int(rng.integers(0, 1 << 16)),
            under_way=int(rng.integers(0, AT_ONCE + 1)),
            last=bool(rng.integers(0, 2)),
        )
        assert DmaDescriptor.decode(d.encode()) == d
        assert DmaDescriptor.decode(encode_list([d])) == replace(d, last=True)
    with pytest.raises(ValueError, match="under_way must be 0 to 7"):
        DmaDescriptor(command=DmaCommand.RUN, under_way=8)
