"""The tables of tags and messages in blocks/README.md against the blocks' code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

BLOCKS = Path(__file__).parents[2] / "blocks"
PORT = re.compile(r'message_port_register_(in|out)\(pmt\.intern\("(\w+)"\)\)')


def blocks_of_code() -> dict[str, str]:
    """Source text of every block, by the name of its class."""
    found = {}
    for path in BLOCKS.glob("*.py"):
        source = path.read_text(encoding="utf-8")
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef) and any(ast.unparse(base).startswith("gr.") for base in node.bases):
                found[node.name] = ast.get_source_segment(source, node) or ""
    return found


def rows_of_readme() -> dict[str, list[str]]:
    """Cells of the table of blocks, by the name of the block."""
    rows = {}
    for line in (BLOCKS / "README.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and cells[0].startswith("`"):
            rows[cells[0].strip("`")] = cells[1:]
    return rows


def test_every_block_is_in_the_table_and_nothing_else():
    assert set(rows_of_readme()) == set(blocks_of_code())


@pytest.mark.parametrize("name", rows_of_readme())
def test_ports_and_tags_of_a_block(name):
    tags_read, tags_written, *messages = rows_of_readme()[name]
    code = blocks_of_code()[name]
    ports = PORT.findall(code)
    for way, cell in zip(("in", "out"), messages, strict=True):
        assert re.findall(r"`(\w+)`", cell) == [port for direction, port in ports if direction == way]
    if "HeardFrames(" in code:
        # This part of some blocks reads their tags.
        code += (BLOCKS / "heard_frames.py").read_text(encoding="utf-8")
    if "TaggedSlots(" in code:
        code += (BLOCKS / "tagged_slots.py").read_text(encoding="utf-8")
    # Tags are read where the block asks for those of its input, and written where it adds some.
    assert bool(tags_read) == ("input_tags(" in code)
    assert bool(tags_written) == ("add_item_tag(" in code or re.search(r"\btime_tags\(", code) is not None)
    # A tag that is read is compared with its key; RX_TIME is the key of `rx_time`.
    for tag in re.findall(r"`(\w+)`", tags_read):
        assert f"tag.key, {tag.upper()})" in code
