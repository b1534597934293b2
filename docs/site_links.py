"""Hook of MkDocs: links out of `docs` lead to copies of those pages, which the site has as well."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = ("README.md", "CHANGELOG.md", "SECURITY.md")
"""Pages of the project's root, for GitHub and the package index; the site has them beside the others."""


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the root; what they say of `docs/page.md` is beside them here."""
    for name in OUTSIDE:
        text = re.sub(r"\]\(docs/([\w-]+\.md)", r"](\1", (ROOT / name).read_text())
        # README would be another index.
        files.append(File.generated(config, "readme.md" if name == "README.md" else name.lower(), content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to the root lead to the copies; to a source file, nowhere: it is named."""
    for name in OUTSIDE:
        target = "readme.md" if name == "README.md" else name.lower()
        markdown = re.sub(rf"\]\((?:\.\./)?{re.escape(name)}(#[\w-]*)?\)", rf"]({target}\1)", markdown)
    return re.sub(r"\[([^\]]+)\]\((?:\.\./)?(?:LICENSE|[\w/]+\.(?:py|json|tflite))\)", r"\1", markdown)
