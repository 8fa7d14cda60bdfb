#!/usr/bin/env python3
"""Compares 'sidestep analyze --fields --format json' with QEMU's own analyze-migration.py, field by field.

usage: compare-analysis.py ANALYZE-MIGRATION.PY SIDESTEP STREAM

Every field of every section that QEMU's script names must have the same value in ours, and ours must name no other.
Prints how many values agree; status 1 and the places where they do not.
"""
import json
import subprocess
import sys

script, tool, stream = sys.argv[1:]
theirs = json.loads(
    subprocess.run([sys.executable, script, "-f", stream, "-d", "state"], check=True, capture_output=True).stdout,
    object_pairs_hook=list)
ours = json.loads(
    subprocess.run([tool, "analyze", "--fields", "--format", "json", stream], check=True, capture_output=True).stdout,
    object_pairs_hook=list)
agreed = 0
differences = []


def compare(path, their, our):
    """Values as QEMU's script prints them against ours."""
    global agreed
    if isinstance(their, list) and their and isinstance(their[0], tuple):
        return fields(path, their, our)
    if isinstance(their, list):
        if isinstance(our, str) and their and all(isinstance(item, str) for item in their):
            # An array of bytes: ours is their text.
            our = list(bytes.fromhex(our))
        if not isinstance(our, list) or len(our) != len(their):
            differences.append(f"{path}: {len(their)} elements, {our!r}")
            return
        for index, (one, other) in enumerate(zip(their, our)):
            compare(f"{path}[{index}]", one, other)
        return
    if isinstance(their, str) and their.startswith("0x"):
        bits = 4 * (len(their) - 2)
        value = int(their, 16)
        if our is None:  # a timer that is not armed
            same = value == (1 << bits) - 1
        elif isinstance(our, bool):
            same = value == int(our)
        elif isinstance(our, int):
            same = value == our % (1 << bits)
        else:
            same = False
    elif our is None:  # the same, which QEMU's script shows as bytes
        same = isinstance(their, str) and set(their.split()) == {"ff"}
    elif isinstance(their, str):
        same = isinstance(our, str) and their.replace(" ", "") == our
    else:
        same = their == our
    if same:
        agreed += 1
    else:
        differences.append(f"{path}: {their!r}, {our!r}")


def fields(path, their, our):
    if not isinstance(our, list) or (our and not isinstance(our[0], tuple)):
        differences.append(f"{path}: a structure, {our!r}")
        return
    rest = list(our)
    for name, value in their:
        index = next((place for place, item in enumerate(rest) if item[0] == name), None)
        if index is None:
            differences.append(f"{path}.{name}: only in QEMU's")
        else:
            compare(f"{path}.{name}", value, rest.pop(index)[1])
    for name, _ in rest:
        differences.append(f"{path}.{name}: only in ours")


sections = [dict(section) for section in dict(ours)["sections"]]
blocks = {dict(block)["name"]: dict(block)["bytes"] for block in dict(ours)["ram-blocks"]}
for key, content in theirs:
    name = key[:key.rindex(" (")]
    if name == "ram":
        for block, size in dict(content)["section sizes"]:
            if blocks.pop(block, None) != int(size, 16):
                differences.append(f"RAM block {block}: {size}")
            agreed += 1
        continue
    if name == "configuration":
        continue
    place = next((index for index, section in enumerate(sections) if section["name"] == name), None)
    if place is None:
        differences.append(f"{key}: only in QEMU's")
    else:
        fields(key, content, sections.pop(place).get("fields", []))
for section in sections:
    differences.append(f"{section['name']}: only in ours")
for block in blocks:
    differences.append(f"RAM block {block}: only in ours")
print(f"{agreed} values agree")
for line in differences[:40]:
    print(line, file=sys.stderr)
raise SystemExit(1 if differences or not agreed else 0)
