"""Write docs/settings.md from `Settings`: each setting, its default, and what it is.

`.venv/bin/python scripts/settings_table` writes the page, and into the Helm chart's schema the
names that its value `settings` takes; `--print` prints the page.
"""

from __future__ import annotations

import json
import os
import re
import sys
from enum import Enum

from pydantic import SecretStr

from scripts.paths import ROOT

PAGE = ROOT / "docs" / "settings.md"
CHART = ROOT / "deploy" / "helm" / "img2img-server"
SCHEMA = CHART / "values.schema.json"
HEAD = """# Settings

<!-- Written by scripts/settings_table; edit the descriptions in server/settings. -->

Read from the environment; options of `img2img serve` win. Lists are comma separated or JSON.
How much [quantisation](quantization.md) changes a picture, and what
[fits into the memory](memory.md), have pages of their own.

| setting | default | what it is |
|---|---|---|
"""


def shown(default: object) -> str:
    """Return a default as the environment would spell it; None and empty are blank."""
    if isinstance(default, SecretStr):
        default = default.get_secret_value()
    if isinstance(default, Enum):
        default = default.value
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return "" if default is None else str(default)


def page() -> str:
    """Return the page's text."""
    os.environ.pop("XDG_DATA_HOME", None)  # the default that the page names, not this machine's
    from server.settings import Settings, environment_name

    lines = []
    for name, field in Settings.model_fields.items():
        default = shown(field.default)
        cells = [f"`{environment_name(name)}`", f"`{default}`" if default else ""]
        description = str(field.description).replace("|", "\\|")
        lines.append(f"| {' | '.join(cells)} | {description} |\n")
    return HEAD + "".join(lines)


def chart_schema() -> str:
    """Return the schema of the chart's values with the settings of this server."""
    from server.settings import Settings, environment_name

    templates = "".join(file.read_text("utf-8") for file in (CHART / "templates").glob("*.*"))
    may_be_set = set(re.findall(r'hasKey \.Values\.settings "(\w+)"', templates))
    made_of_other_values = set(re.findall(r"IMG2IMG_\w+", templates)) - may_be_set
    names = {environment_name(field) for field in Settings.model_fields} - made_of_other_values
    schema = json.loads(SCHEMA.read_text("utf-8"))
    schema["properties"]["settings"]["propertyNames"]["enum"] = sorted(names)
    return json.dumps(schema, indent=2) + "\n"


def main() -> None:
    """Write the page, or print it."""
    if "--print" in sys.argv[1:]:
        print(page(), end="")
    else:
        PAGE.write_text(page(), encoding="utf-8")
        SCHEMA.write_text(chart_schema(), encoding="utf-8")


if __name__ == "__main__":
    main()
