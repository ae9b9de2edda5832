"""What an index server's file holds, as one line of JSON. Reads only; the server may run.

    python catalog_bytes.py FILE
"""

import json
import sqlite3
import sys
from pathlib import Path

file = sqlite3.connect(f"{Path(sys.argv[1]).absolute().as_uri()}?mode=ro", uri=True)
# One view for all questions.
file.execute("BEGIN")
entries, entry_bytes, last_entry = file.execute(
    "SELECT count(*), total(length(entry)), ifnull(max(idx), 0) FROM log"
).fetchone()
snapshot_bytes, snapshot_last = file.execute(
    "SELECT total(length(bytes)), ifnull(max(last), 0) FROM snapshot_head JOIN snapshot_part USING (id)"
).fetchone()
print(
    json.dumps(
        {
            "entries": entries,
            "entry_bytes": entry_bytes,
            "last_entry": last_entry,
            "snapshot_bytes": snapshot_bytes,
            "snapshot_last": snapshot_last,
        }
    )
)
