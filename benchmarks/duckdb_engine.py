"""DuckDB as an engine of the benchmarks: lines of JSON in, lines of JSON out, until standard input ends.

Arguments: the folder of the tables' Parquet files, threads, memory limit in MiB.
Needs the packages duckdb and pyarrow.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any


def answer(**fields: Any) -> None:
    """Write one response."""
    print(json.dumps(fields), flush=True)


def main() -> None:
    """Open the tables, then run every query that comes."""
    folder, threads, memory_mib = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    try:
        import duckdb
        import pyarrow as pa
    except ImportError as error:
        answer(error=f"{error}: install the packages duckdb and pyarrow in the Python that is used ({sys.executable})")
        return

    connection = duckdb.connect()
    connection.execute(f"SET threads = {threads}")
    connection.execute(f"SET memory_limit = '{memory_mib}MiB'")
    for file in sorted(folder.glob("*.parquet")):
        path = str(file).replace("'", "''")
        connection.execute(f"CREATE VIEW {file.stem} AS SELECT * FROM read_parquet('{path}')")
    answer(ready=f"DuckDB {duckdb.__version__}")

    for line in sys.stdin:
        request = json.loads(line)
        try:
            started = time.perf_counter()
            # A relation and not a DB-API result, which would copy the rows once more.
            table: pa.Table = connection.sql(request["sql"]).to_arrow_table()
            seconds = time.perf_counter() - started
            if request["result"] is not None:
                with pa.OSFile(request["result"], "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                    writer.write_table(table)
        except duckdb.Error as error:
            answer(error=str(error))
        else:
            answer(seconds=seconds, rows=table.num_rows)


if __name__ == "__main__":
    main()
