"""Writes conf/streamsrv.toml and the tables of docs/settings.md from streamsrv/settings:

python tests/settings_pages.py
"""

import json
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from streamsrv.config import FIELDS  # noqa: E402 - a script finds the package by the line above
from streamsrv.settings import TABLES  # noqa: E402

REFERENCE, PAGE = ROOT / "conf" / "streamsrv.toml", ROOT / "docs" / "settings.md"
MARK = "<!-- generated -->\n"


def in_table(table):
    return [(name, field) for name, field in FIELDS.items() if field.metadata["table"] == table]


def shown(value):
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def wrapped(text):
    return textwrap.wrap(text, 110, initial_indent="# ", subsequent_indent="# ")


def unit_of(field):
    return f"advanced; {field.metadata['unit']}" if field.metadata["advanced"] else field.metadata["unit"]


def reference():
    """The TOML file with every setting, its default, unit and reason."""
    lines = wrapped(
        "Every setting of streamsrv with its default. The default also holds for a setting that is left out."
    )
    lines += wrapped(
        "streamsrv serve --config FILE reads this file. The environment (STREAMSRV_PORT=8943) overrides it, "
        "and a flag (--port 8943) overrides both. An advanced setting serves measurements and tests: its "
        "default suits every server."
    )
    for table, subject in TABLES.items():
        lines += ["", "", f"# {subject}", f"[{table}]"]
        for name, field in in_table(table):
            lines += ["", f"# {unit_of(field)}", *wrapped(field.metadata["reason"])]
            lines.append(f"{name} = {shown(field.default)}")
    return "\n".join(lines) + "\n"


def page(text):
    """docs/settings.md with new tables behind MARK."""
    lines = []
    for table, subject in TABLES.items():
        lines += ["", f"## `[{table}]`", "", f"{subject}.", ""]
        lines += ["| setting | default | unit | reason |", "| --- | --- | --- | --- |"]
        for name, field in in_table(table):
            unit = unit_of(field).replace("|", r"\|")
            lines.append(f"| `{name}` | `{shown(field.default)}` | {unit} | {field.metadata['reason']} |")
    return text.partition(MARK)[0] + MARK + "\n".join(lines) + "\n"


if __name__ == "__main__":
    REFERENCE.write_text(reference(), encoding="utf-8")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
