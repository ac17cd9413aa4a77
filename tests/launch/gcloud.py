#!/usr/bin/env python3
"""Plays Google's `gcloud` for tests: it checks arguments, keeps a queued resource, and its hosts
are folders on which commands run.

The folder PLAY holds `play.json` with what happens, and gets `calls.jsonl` with all calls:

    states       a list for each creation: the states that `describe` shows, the last one for ever
    errors       by verb (create, describe, delete, scp, ssh): messages of its next calls; null for
                 a call that succeeds
    preempted_at lines of the log at which the slices are taken back, one for each time
    broken_at    lines of the log at which the connection breaks
    num_hosts    hosts of a slice
"""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

PLAY = pathlib.Path(os.environ["PLAY"])
FLAGS = {
    "create": {"node-id", "node-count", "node-prefix", "accelerator-type", "runtime-version"}
    | {"spot", "reserved", "service-account"},
    "describe": {"format"},
    "delete": {"force"},
    "scp": {"worker"},
    "ssh": {"worker", "command"},
}


def fail(verb, message, code=1):
    print(f"ERROR: (gcloud.compute.tpus.{verb}) {message}", file=sys.stderr)
    sys.exit(code)


def parse(argv):
    """Returns the verb, the plain words and the flags; ends as gcloud does on unknown ones."""
    if argv[:2] != ["compute", "tpus"] or argv[2:3] not in (["queued-resources"], ["tpu-vm"]):
        fail("main", f"Invalid choice: {argv[:3]}", 2)
    verb, words, flags = argv[3], [], {}
    for word in argv[4:]:
        if not word.startswith("--"):
            words.append(word)
            continue
        name, _, value = word[2:].partition("=")
        if name not in FLAGS[verb] | {"zone", "project", "quiet"}:
            fail(verb, f"unrecognized arguments: {word}", 2)
        flags[name] = value
    if not flags.get("zone") or "quiet" not in flags:
        fail(verb, "argument --zone: Must be specified.", 2)
    return verb, words, flags


def host(node, worker):
    return PLAY / "hosts" / f"{node}-{worker}"


def workers(play, flags):
    return range(play["num_hosts"]) if flags["worker"] == "all" else [int(flags["worker"])]


def kill_programs():
    for pid in PLAY.glob("hosts/*/m3ae-*/.launch/pid"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(pid.read_text()), signal.SIGKILL)


def run(play, node, flags):
    """Runs a command on hosts; on one host its output is passed on, line by line."""
    code = 0
    for worker in workers(play, flags):
        home = host(node, worker)
        if play["state"] != "ACTIVE" or not home.is_dir():
            fail("tpu-vm.ssh", "Could not connect", 255)
        process = subprocess.Popen(
            ["bash", "-c", flags["command"]],
            cwd=home,
            env={**os.environ, "HOME": str(home), "WORKER": str(worker)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for line in process.stdout or ():
            print(line, end="", flush=True)
            for name in ("preempted_at", "broken_at"):
                if play[name] and play[name][0] in line:
                    play[name].pop(0)
                    if name == "preempted_at":
                        play["state"], play["states"][0] = "SUSPENDED", ["SUSPENDED"]
                        kill_programs()
                    save(play)
                    process.kill()
                    sys.exit(255)
        code = process.wait() or code
    sys.exit(code)


def save(play):
    (PLAY / "play.json").write_text(json.dumps(play))


def main():
    with (PLAY / "calls.jsonl").open("a") as file:
        file.write(json.dumps(sys.argv[1:]) + "\n")
    verb, words, flags = parse(sys.argv[1:])
    play = {"state": "", "errors": {}, "preempted_at": [], "broken_at": [], "num_hosts": 1}
    play |= json.loads((PLAY / "play.json").read_text())
    if play["errors"].get(verb):
        message = play["errors"][verb].pop(0)
        save(play)
        if message:
            fail(verb, message, 255 if verb in ("scp", "ssh") else 1)
    name = words[0]
    match verb:
        case "create":
            assert flags["accelerator-type"]
            assert flags["runtime-version"]
            if play["state"]:
                fail(verb, f"ALREADY_EXISTS: Resource '{name}' already exists")
            count = int(flags.get("node-count", 1))
            prefix = flags.get("node-prefix", flags.get("node-id"))
            for node in [prefix] if count == 1 else [f"{prefix}-{n}" for n in range(count)]:
                for worker in range(play["num_hosts"]):
                    host(node, worker).mkdir(parents=True)
            play["state"] = "ACCEPTED"
        case "describe":
            if not play["state"]:
                fail(verb, f"NOT_FOUND: Resource '{name}' was not found")
            play["state"] = play["states"][0][0]
            if len(play["states"][0]) > 1:
                play["states"][0].pop(0)
            state = {"state": play["state"]}
            if play["state"] == "FAILED":
                state["failedData"] = {"error": {"message": "the zone has no capacity"}}
            print(json.dumps({"state": state}))
        case "delete":
            if "force" not in flags:
                fail(verb, "FAILED_PRECONDITION: it has nodes; use --force")
            kill_programs()
            shutil.rmtree(PLAY / "hosts", ignore_errors=True)
            play["state"] = ""
            play["states"] = play["states"][1:] or play["states"]
        case "scp":
            node, _, path = words[1].partition(":")
            for worker in workers(play, flags):
                shutil.copy(words[0], host(node, worker) / path)
        case "ssh":
            run(play, name, flags)
    save(play)


main()
