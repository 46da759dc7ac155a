"""Code blocks of Markdown pages, and how they are run.

A page is one story: its blocks are run from top to bottom in one folder and, where they are Python, in one namespace.
Comments in its source, which readers of the site do not see, say what is special about the next block:

    <!-- starts with: mydata, runs/mine -->        what the folder holds before it
    <!-- file: mydata/dataset.yaml -->             it is written there
    <!-- not run: needs a GPU -->                  it is only looked at: its commands and options must exist
    <!-- stands for the camera: rgb = scan() -->   run before it, in place of hardware

What would take hours is shortened by one rule (`Story.shortened` in test_documentation.py): `train` and `benchmark` lose
`--budget`, get tiny settings after their own, and have one seed.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import dropwhile
from pathlib import Path

COMMENT = re.compile(r"<!-- (starts with|file|not run|stands for the camera): (.*) -->")
SETS = re.compile(r"\w+=")
FENCE = re.compile(r"(`{3,})(\S*)")


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        page: the file it stands in.
        line: of its fence, from 1.
        language: word after the fence.
        text: what is inside.
        marks: what the comments before it say, by their first words.
    """

    page: Path
    line: int
    language: str
    text: str
    marks: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command of a shell block, without what it sets in the environment."""
        lines = self.text.replace("\\\n", " ").splitlines()
        found = (shlex.split(line, comments=True) for line in lines)
        return [words for line in found if (words := list(dropwhile(SETS.match, line)))]


def blocks_of(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    marks: dict[str, str] = {}
    number = 0
    while number < len(lines):
        if comment := COMMENT.fullmatch(lines[number].strip()):
            marks[comment[1]] = comment[2]
        elif fence := FENCE.match(lines[number]):
            end = lines.index(fence[1], number + 1)
            yield Block(page, number + 1, fence[2], "\n".join(lines[number + 1 : end]) + "\n", marks)
            marks, number = {}, end
        number += 1
