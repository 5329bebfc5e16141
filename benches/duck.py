"""DuckDB for `strata-bench goals`: a line of JSON in, a line of JSON out.

{"sql": S, "seconds": N} runs S once, then again until N seconds of CPU are spent (at least once), and answers with the rows of
the first run as text, the mean CPU and wall time of the others in ms. {"sql": S} runs S once and answers with its time.
"""
import json
import resource
import sys
import time

import duckdb

con = duckdb.connect(sys.argv[1])
con.execute("SET threads = 1")
con.execute("SET enable_progress_bar = false")


def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def text(value):
    if value is None:
        return None
    if isinstance(value, bool):
        return "t" if value else "f"
    return str(value)


def run(sql):
    c, w = cpu(), time.perf_counter()
    rows = con.execute(sql).fetchall()
    return rows, cpu() - c, time.perf_counter() - w


for line in sys.stdin:
    request = json.loads(line)
    try:
        rows, used, wall = run(request["sql"])
        if "seconds" in request:
            used, wall, runs = 0.0, 0.0, 0
            while runs == 0 or (used < request["seconds"] and runs < 40):
                _, c, w = run(request["sql"])
                used, wall, runs = used + c, wall + w, runs + 1
            used, wall = used / runs, wall / runs
        answer = {"rows": [[text(v) for v in row] for row in rows], "cpu": used * 1000, "wall": wall * 1000}
    except Exception as error:  # the harness shows it
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
