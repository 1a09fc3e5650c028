"""`python -m tests.readme_commands N` prints the N-th command of the README's quick start."""

from __future__ import annotations

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def quick_start() -> list[str]:
    """The lines of the code blocks below the heading "Quick start", up to the next heading."""
    section = README.read_text(encoding="utf-8").split("\n## Quick start\n", 1)[1].split("\n## ", 1)[0]
    return [line for block in _blocks(section, "sh") for line in block.splitlines() if line.strip()]


def code_blocks(language: str) -> list[str]:
    """All of a language."""
    return _blocks(README.read_text(encoding="utf-8"), language)


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


if __name__ == "__main__":
    print(quick_start()[int(sys.argv[1]) - 1])
