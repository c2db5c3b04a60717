"""Everything that the two methods share; nothing here knows their names. `docs/code.md` is the map.

Modules keep their former names too: `lib.metrics` is `lib.scoring.metrics`. `old_names/` has a file for each.
"""

from pathlib import Path

__path__.append(str(Path(__file__).parent / "old_names"))
