#!/usr/bin/env python3
"""Says the same to two QMP servers and compares what they answer.

usage: qmp-answers.py QEMU-SOCKET SIDESTEP-SOCKET

Each line of qmp-answers.txt is said on a connection of its own, behind the negotiation unless it begins with "!". Errors must be
of the same class and in the same words; a success must be one in both, and of the same contents where the line begins with "=".
A line that begins with "~" must be refused by both (or taken by both), in whatever words: the reason stands behind a "#" above it.
"""
import json
import os
import socket
import sys


def talk(path, line, negotiates):
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(20)
    connection.connect(path)
    file = connection.makefile("rwb")
    file.readline()
    if negotiates:
        file.write(b'{"execute":"qmp_capabilities"}\n')
        file.flush()
        file.readline()
        end = b'{"execute":"query-kvm","id":"end"}\n'
    else:
        end = b'{"execute":"qmp_capabilities","id":"end"}\n'
    file.write(line.encode() + b"\n" + end)
    file.flush()
    answers = []
    while True:
        answer = file.readline()
        if not answer:
            answers.append("closed")
            return answers
        answer = json.loads(answer)
        if answer.get("id") == "end":
            return answers
        if "event" not in answer:
            answers.append(answer)


stock, ours = sys.argv[1:]
count = 0
different = []
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "qmp-answers.txt")) as file:
    lines = [line.rstrip("\n") for line in file if line.strip() and not line.startswith("#")]
for line in lines:
    marks = line[:len(line) - len(line.lstrip("!=~"))]
    line = line[len(marks):]
    their, our = (talk(path, line, "!" not in marks) for path in (stock, ours))
    count += 1
    if "~" in marks:
        same = ["error" in answer for answer in their[:1]] == ["error" in answer for answer in our[:1]]
    elif "=" in marks:
        same = their == our
    else:
        same = len(their) == len(our) and all(
            one == other if "error" in one or "error" in other else "return" in one and "return" in other
            for one, other in zip(their, our))
    if not same:
        different.append((line, their, our))
for line, their, our in different:
    print(f"{line}\n  QEMU      {json.dumps(their)[:600]}\n  Sidestep  {json.dumps(our)[:600]}")
print(f"{count - len(different)} of {count} answers agree")
raise SystemExit(1 if different else 0)
