#!/usr/bin/env python3
"""Compares the schema of two QMP servers: what the second has must be there in the first, and mean the same.

usage: qmp-schema.py QEMU-SOCKET SIDESTEP-SOCKET

Commands, their arguments, members of their answers, events and their data; names that begin with "x-" are the second's own. Members
that only older or newer releases have are named below.
"""
import json
import socket
import sys

OTHER_RELEASES = {"migrate.blk", "migrate.inc", "postcopy-device"}


def schema(path):
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    file = connection.makefile("rwb")
    file.readline()
    for command in ("qmp_capabilities", "query-qmp-schema"):
        file.write(json.dumps({"execute": command}).encode() + b"\n")
        file.flush()
        answer = json.loads(file.readline())
        while "event" in answer:
            answer = json.loads(file.readline())
    entities = answer["return"]
    top = {"command", "event"}
    return ({entity["name"]: entity for entity in entities if entity["meta-type"] not in top},
            {entity["name"]: entity for entity in entities if entity["meta-type"] in top})


stock, own = schema(sys.argv[1]), schema(sys.argv[2])
different = []
count = 0
seen = set()


def compare(path, their, our, answers, base=()):
    """Types by name; members of `base` may stand in the object that holds this branch of a union. An answer may lack what QEMU's has; an argument may be missing too, but none may be new."""
    global count
    their, our = stock[0][their], own[0][our]
    if (their["name"], our["name"]) in seen:
        return
    seen.add((their["name"], our["name"]))
    kinds = their["meta-type"], our["meta-type"]
    if "builtin" in kinds and kinds[0] == kinds[1]:
        if their["json-type"] != our["json-type"]:
            different.append(f"{path}: {their['json-type']}, {our['json-type']}")
        count += 1
    elif kinds == ("enum", "enum"):
        words = {member["name"] for member in their["members"]}
        for member in our["members"]:
            count += 1
            ours_alone = member["name"].startswith("x-") or member["name"] in OTHER_RELEASES | {"unix-page-flipping"}
            if member["name"] not in words and not ours_alone:
                different.append(f"{path}: the word {member['name']} is ours alone")
    elif kinds == ("array", "array"):
        compare(path + "[]", their["element-type"], our["element-type"], answers)
    elif kinds == ("alternate", "alternate"):
        count += 1
    elif kinds == ("object", "object"):
        members = {member["name"]: member for member in their["members"]}
        for variant in their.get("variants", []):
            members.update({member["name"]: member for member in stock[0][variant["type"]]["members"]})
        for member in our["members"]:
            name = member["name"]
            if name.startswith("x-") or name in base or f"{path}.{name}" in OTHER_RELEASES:
                continue
            if name not in members:
                different.append(f"{path}.{name} is ours alone")
                continue
            count += 1
            if not answers and "default" in members[name] and "default" not in member:
                different.append(f"{path}.{name} may be missing in QEMU and must be there in ours")
            compare(f"{path}.{name}", members[name]["type"], member["type"], answers)
        cases = {variant["case"]: variant["type"] for variant in their.get("variants", [])}
        for variant in our.get("variants", []):
            if variant["case"] not in cases:
                different.append(f"{path}: the case {variant['case']} is ours alone")
            else:
                compare(f"{path}={variant['case']}", cases[variant["case"]], variant["type"], answers, set(members))
    elif kinds[0] == "object" and kinds[1] == "enum" or kinds[0] != kinds[1]:
        different.append(f"{path}: {kinds[0]}, {kinds[1]}")


for name, entity in own[1].items():
    if name.startswith("x-"):
        continue
    if name not in stock[1]:
        different.append(f"{entity['meta-type']} {name} is ours alone")
        continue
    count += 1
    seen.clear()
    compare(name, stock[1][name]["arg-type"], entity["arg-type"], entity["meta-type"] == "event")
    if entity["meta-type"] == "command":
        seen.clear()
        compare(name + " answer", stock[1][name]["ret-type"], entity["ret-type"], True)
for line in different:
    print(line)
print(f"{count} names and types agree, {len(different)} do not")
raise SystemExit(1 if different else 0)
