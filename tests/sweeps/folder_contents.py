"""What is in the folder of a sweep, to be compared with that of another one or with itself later."""

from visionpulse_analysis.traces.store import TraceStore


def state_of(folder):
    """Every file of the finished traces, with what changes when it is written."""
    files = [path for path in (folder / "traces").rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.relative_to(folder): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def content_of(folder):
    """What two equal sweeps have in common: the table's bytes, and every trace without the time it was made."""
    store = TraceStore(folder / "traces")
    traces = {id: (store[id].data_hash, {**store[id].meta, "created": None}) for id in store.ids}
    return (folder / "table.csv").read_bytes(), traces
