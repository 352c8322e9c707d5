"""What every trace has to be, whoever wrote it."""

from collections import defaultdict

ROUNDING = 1e-3 / 2  # half of the smallest time in microseconds


def check_trace(events: list[dict]) -> None:
    """Check fields, order and nesting of a trace's events, by process and thread."""
    ends: dict[tuple[int, int], list[float]] = defaultdict(list)  # of what encloses the next event
    last: dict[int, float] = {}
    for event in events:
        assert {"ph", "name", "ts", "pid", "tid"} <= set(event) and event["ph"] in ("X", "M"), event
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name") and event["args"]["name"], event
            continue
        assert event["ts"] >= last.get(event["pid"], 0.0) and event["dur"] >= 0, event
        last[event["pid"]] = event["ts"]
        around, end = ends[event["pid"], event["tid"]], event["ts"] + event["dur"]
        while around and around[-1] <= event["ts"] + ROUNDING:
            around.pop()
        assert not around or end <= around[-1] + ROUNDING, f"{event} sticks out of what it is in"
        depth = ["phase", "call"].index(event["cat"]) if event["cat"] in ("phase", "call") else 2
        assert len(around) == depth, f"{event} is in {len(around)} others"
        around.append(end)
    assert last, "no event"
    for process in last:
        assert any(event["name"] == "process_name" and event["pid"] == process for event in events)
