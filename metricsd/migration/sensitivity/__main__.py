"""`python -m metricsd.migration.sensitivity FOLDER SEED FAULTS`: put faults in, and leave what was noticed in the folder.

FOLDER holds the second reader's task and its list of files (second/reader.py); the sample comes from those.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from random import Random

import msgspec

from metricsd.migration.leash import hold_to_parent
from metricsd.migration.model import FileKind, SourceFile
from metricsd.migration.second.files import File
from metricsd.migration.second.reader import FILES, TASK, Task
from metricsd.migration.sensitivity import sample
from metricsd.migration.sensitivity.measure import Bench, encode, measure


def main(folder: Path, seed: int, faults: int) -> None:
    """Measure, and leave the result under the seed's name."""
    task = msgspec.json.decode((folder / TASK).read_bytes(), type=Task)
    place = folder / f"check-{seed}"
    with (folder / FILES).open(encoding="utf-8", errors="surrogateescape") as listed:
        files = (_source_file(File(*json.loads(line))) for line in listed)
        source = sample.write(place / "source", files, Random(seed))  # noqa: S311 - repeatable on purpose
    (place / "work").mkdir(mode=0o700)
    bench = Bench(source, place / "work", task.now_us)
    try:
        found = measure(bench, seed=seed, faults=faults)
    finally:
        bench.close()
    (folder / f"check-{seed}.json").write_bytes(encode(found))


def _source_file(file: File) -> SourceFile:
    return SourceFile(name=file.path, path=file.path, kind=FileKind(file.kind), packed=file.packed, size=file.size)


if __name__ == "__main__":
    hold_to_parent()
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
