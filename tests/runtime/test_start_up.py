"""What starts with a session and with a command: counted in modules, since times depend on the computer."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("tvm", "tflite", "amaranth", "rich", "serial", "nnloom.compiler", "nnloom.sim", "nnloom.arch.reference")

SESSION = """
import sys
import numpy as np
from nnloom.runtime import InferenceSession

def answer():
    with InferenceSession(sys.argv[1], "cpu") as session:
        assert session.native
        x = np.arange(500, dtype=np.float32).reshape(1, 50, 10, 1) - 250
        return session.run(x)["Identity"]

first = answer()
print(*sys.modules)
# TVM may come later: its compiler, beside the runtime library that is there.
import tvm.relax
np.testing.assert_array_equal(answer(), first)
"""


def modules(*arguments: str) -> list[str]:
    """The last line that a new interpreter prints: names of modules."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.splitlines()[-1].split()


def test_a_session_on_the_cpu_brings_no_compiler(artifacts):
    loaded = modules("-c", SESSION, str(artifacts("keyword_spotting")))
    assert not [name for name in HEAVY if name in loaded]
    assert "tvm_ffi" in loaded
    assert len(loaded) < 420, len(loaded)  # 338; with all of TVM 1,156


def test_help_and_version_do_without_numpy():
    script = "import sys; from nnloom.cli import main\ntry: main([sys.argv[1]])\nexcept SystemExit: print(*sys.modules)"
    for option in ("--version", "--help"):
        loaded = modules("-c", script, option)
        assert "nnloom.cli.main" in loaded and not {"numpy", *HEAVY} & set(loaded)
        assert len(loaded) < 160, len(loaded)


def test_run_imports_what_it_needs(artifacts, tmp_path):
    import numpy as np

    np.save(tmp_path / "x.npy", np.zeros((1, 50, 10, 1), np.float32))
    script = "import sys; from nnloom.cli import main; assert main(sys.argv[1:]) == 0; print(*sys.modules)"
    loaded = modules("-c", script, "run", str(artifacts("keyword_spotting")), "--input", str(tmp_path / "x.npy"))
    assert not [name for name in HEAVY if name in loaded]
