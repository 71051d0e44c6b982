"""Print what every query of the Grafana dashboard says of a real run, as a table.

`.venv/bin/python scripts/show_dashboard` serves the embedded model, asks for 36 images by 12 at a
time, and lets Prometheus (Debian: apt-get install prometheus) scrape it. Takes a minute or two.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from scripts.services.dashboard_run import in_words, queries, scraped_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=36)
    parser.add_argument("--clients", type=int, default=12)
    asked = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        scraped_run(Path(folder), asked.images, asked.clients) as run,
    ):
        print("| panel | series | at the end of the run |\n|---|---|---|")
        for query in queries():
            found = in_words(run.prometheus.query(query.expression)) or "nothing"
            legend = " ".join(query.legend.replace("{{", "by ").replace("}}", "").split())
            print(f"| {query.panel} | {legend} | {found} |")


if __name__ == "__main__":
    main()
