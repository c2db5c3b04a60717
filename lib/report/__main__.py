"""Reports of finished sessions, made again from their files, and compared: python -m lib.report SESSION …"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lib import report
from lib.errors import UserError, exit_status, prepare_streams, show
from lib.scoring import summary_over_seeds


@exit_status
def main(folders: Sequence[str]) -> None:
    if not folders or folders[0].startswith("-"):
        raise UserError("name the folders of one or more sessions: python -m lib.report sessions/NAME …")
    compared = summary_over_seeds.compare([Path(folder) for folder in folders])
    for folder in map(Path, folders):
        show(f"report: {report.make(folder).resolve().as_uri()}")
    show(compared)


if __name__ == "__main__":
    prepare_streams()
    sys.exit(main(sys.argv[1:]))
