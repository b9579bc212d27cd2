"""Stands in for `aws ssm start-session` with the document AWS-StartInteractiveCommand.

    python session.py MACHINES --target INSTANCE --document-name NAME --parameters PARAMETERS

MACHINES holds for each instance a folder, whose file `pid` is a process in its mount namespace and the
parent of those in its process namespace. The agent of Systems Manager must have been started there.
"""

import argparse
import json
import os
import subprocess
import sys

from awscli.shorthand import ShorthandParser

parser = argparse.ArgumentParser()
parser.add_argument("machines")
parser.add_argument("--region")
parser.add_argument("--target", required=True)
parser.add_argument("--document-name", required=True)
parser.add_argument("--parameters", required=True)
given = parser.parse_args()

if given.document_name != "AWS-StartInteractiveCommand":
    sys.exit(f"An error occurred (InvalidDocument): {given.document_name}")
text = given.parameters
parameters = json.loads(text) if text.startswith("{") else ShorthandParser().parse(text)
# The document's parameter is a list of one text, and there is no other.
[command] = parameters.pop("command")
if parameters:
    sys.exit(f"An error occurred (InvalidParameters): {parameters}")

machine = os.path.join(given.machines, given.target)
if not os.path.exists(os.path.join(machine, "amazon-ssm-agent.service.started")):
    sys.exit(f"An error occurred (TargetNotConnected): {given.target} is not connected.")
with open(os.path.join(machine, "pid")) as file:
    of = f"/proc/{file.read().strip()}/ns"
print("\nStarting session with SessionId: me-0123456789abcdef0", flush=True)
environment = {"PATH": f"{machine}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
ended = subprocess.run(
    ["nsenter", f"--net={of}/net", f"--pid={of}/pid_for_children", f"--mount={of}/mnt", "sh", "-c", command],
    env=environment,
    cwd="/",
)
print("\n\nExiting session with sessionId: me-0123456789abcdef0.\n")
sys.exit(ended.returncode)
