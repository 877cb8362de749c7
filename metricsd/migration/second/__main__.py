"""`python -m metricsd.migration.second FOLDER`: read what the folder asks for (reader.py)."""

from __future__ import annotations

import sys
from pathlib import Path

from metricsd.migration.leash import hold_to_parent
from metricsd.migration.second.reader import main

if __name__ == "__main__":
    hold_to_parent()
    main(Path(sys.argv[1]))
