"""Write requirements.lock: every package of `nnloom[dev]` with its version and hash, as PyPI serves them.

Run by `make lock` on the locked platform, Python 3.11 on x86-64 Linux. pip resolves; only its default index is asked.
Versions that are installed are kept unless `--upgrade` is given.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
BUILD = ("pip", "setuptools")
"""What `make venv` installs first: it builds nnloom, and packages that come as sources."""


def main() -> int:
    """Resolve and write."""
    if (sys.version_info[:2], sys.platform, platform.machine()) != ((3, 11), "linux", "x86_64"):
        print("error: the lock is for Python 3.11 on x86-64 Linux; run this there", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="nnloom-lock-") as folder:
        constraints, report = Path(folder, "constraints"), Path(folder, "report")
        kept = [] if "--upgrade" in sys.argv else [f"{d.name}=={d.version}" for d in distributions()]
        constraints.write_text("\n".join(line for line in kept if line.split("==")[0] not in ("nnloom", *BUILD)))
        # Neither local indexes nor found links: the hashes must be those of PyPI.
        others = ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL", "PIP_CONSTRAINT")
        env = {name: value for name, value in os.environ.items() if name not in others}
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--report", str(report), "--constraint", str(constraints), f"{ROOT}[dev]", *BUILD]
        subprocess.run(command, env={**env, "PIP_CONFIG_FILE": os.devnull}, check=True)
        packages = json.loads(report.read_text())["install"]
    lines = ["# Python 3.11, x86-64 Linux; everything of nnloom[dev]. Written by `make lock`; used by `make venv`."]
    pinned = {}
    for package in packages:
        name = package["metadata"]["name"].lower().replace("_", "-").replace(".", "-")
        if name != "nnloom":
            digest = package["download_info"]["archive_info"]["hashes"]["sha256"]
            pinned[name] = f"{name}=={package['metadata']['version']} --hash=sha256:{digest}"
    LOCK.write_text("\n".join([*lines, *(pinned[name] for name in sorted(pinned))]) + "\n")
    print(f"{LOCK.name}: {len(pinned)} packages")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
