#!/usr/bin/env python3
"""Moves a guest between two monitors with the public QMP client (PyPI: qemu.qmp), as a script written for QEMU does.

usage: qmp-move.py SOURCE-SOCKET DESTINATION-SOCKET URI [CAPABILITY...]

The destination waits for a guest (-incoming defer). Runs unchanged against QEMU and against Sidestep.
"""
import asyncio
import sys

from qemu.qmp import QMPClient
from qemu.qmp.error import QMPError
from qemu.qmp import ExecuteError


async def main(source_path, destination_path, uri, capabilities):
    source = QMPClient("source")
    destination = QMPClient("destination")
    await source.connect(source_path)
    await destination.connect(destination_path)
    seen = []

    async def watch():
        async for event in source.events:
            seen.append(event["event"])

    watcher = asyncio.create_task(watch())
    assert (await source.execute("query-status"))["status"] == "running"
    await source.execute("stop")
    assert (await source.execute("query-status"))["status"] == "paused"
    await source.execute("cont")
    assert (await source.execute("query-status"))["running"]
    assert (await destination.execute("query-status"))["status"] == "inmigrate"
    known = {entry["capability"] for entry in await source.execute("query-migrate-capabilities")}
    switched_on = [{"capability": name, "state": True} for name in ["events", *capabilities]]
    assert "events" in known
    try:
        await source.execute("no-such-command")
        raise SystemExit("an unknown command was accepted")
    except ExecuteError as error:
        assert error.error_class == "CommandNotFound"
    for client in (source, destination):
        await client.execute("migrate-set-capabilities", {"capabilities": switched_on})
    await source.execute("migrate-set-parameters", {"downtime-limit": 200, "max-bandwidth": 1 << 30})
    assert (await source.execute("query-migrate-parameters"))["downtime-limit"] == 200
    await destination.execute("migrate-incoming", {"uri": uri})
    await source.execute("migrate", {"uri": uri})
    while True:
        answer = await source.execute("query-migrate")
        if answer.get("status") in ("completed", "failed", "cancelled"):
            break
        await asyncio.sleep(0.01)
    assert answer["status"] == "completed", answer
    assert answer["ram"]["remaining"] == 0 and answer["downtime"] >= 0 and answer["total-time"] >= 0
    while (await destination.execute("query-migrate")).get("status") != "completed":
        await asyncio.sleep(0.01)
    assert (await source.execute("query-status"))["status"] == "postmigrate"
    assert (await destination.execute("query-status"))["status"] == "running"
    await source.execute("quit")
    for _ in range(500):
        if "SHUTDOWN" in seen:
            break
        await asyncio.sleep(0.01)
    watcher.cancel()
    for name in ("STOP", "RESUME", "MIGRATION", "SHUTDOWN"):
        assert name in seen, (name, seen)
    await destination.disconnect()
    try:
        await source.disconnect()
    except EOFError:
        pass  # it was told to quit
    print("moved", answer["ram"]["transferred"])


if __name__ == "__main__":
    if len(sys.argv) < 4:
        raise SystemExit(__doc__)
    try:
        asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]))
    except QMPError as error:
        raise SystemExit(f"QMP: {error}")
