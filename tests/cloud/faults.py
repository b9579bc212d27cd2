"""Faults of the interface: what a caller sees when AWS, or the way to it, is not well.

FOLDER/faults/api holds one line `FAULT [ACTION]` while something is wrong, for calls of that action or for
all. Only callers with other credentials than the tester's own meet it. FOLDER/faults/met gets a line with the
fault's name for each call that does.
"""

import io
import os
import re
import socket
import time
import urllib.parse

TESTER = "test"
# Longer than any caller waits.
HANG_SECONDS = 60
SLOW_SECONDS = 3
REFUSALS = {
    "throttle": ("400 Bad Request", "Throttling", "Rate exceeded"),
    "500": ("500 Internal Server Error", "InternalFailure", "An internal error has occurred"),
    "denied": ("403 Forbidden", "AccessDenied", "no identity-based policy allows the action"),
    "expired": ("403 Forbidden", "ExpiredToken", "The security token included in the request is expired"),
}
# Faults of lists of groups alone.
OF_LISTS = ("no-group", "no-instances")
NO_GROUPS = (
    b'<DescribeAutoScalingGroupsResponse xmlns="http://autoscaling.amazonaws.com/doc/2011-01-01/">'
    b"<DescribeAutoScalingGroupsResult><AutoScalingGroups/></DescribeAutoScalingGroupsResult>"
    b"</DescribeAutoScalingGroupsResponse>"
)


class Faulty:
    """Stands before an application (WSGI)."""

    def __init__(self, application, folder):
        self.application = application
        self.file = os.path.join(folder, "api")
        self.met = os.path.join(folder, "met")

    def fault(self, environ, action):
        """Gives the fault that a call meets, if any."""
        caller = re.search(r"Credential=([^/]+)/", environ.get("HTTP_AUTHORIZATION", ""))
        if caller is None or caller.group(1) == TESTER:
            return None
        try:
            with open(self.file) as file:
                words = file.read().split()
        except FileNotFoundError:
            return None
        if not words or words[1:] not in ([], [action]):
            return None
        if words[0] in OF_LISTS and action != "DescribeAutoScalingGroups":
            return None
        return words[0]

    def __call__(self, environ, start_response):
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        action = urllib.parse.parse_qs(body.decode("utf-8", "replace")).get("Action", [""])[0]
        fault = self.fault(environ, action)
        if fault is not None:
            with open(self.met, "a") as file:
                file.write(f"{fault}\n")

        def executed():
            """Executes the call, and keeps the answer back."""
            headers = []
            answer = b"".join(self.application(environ, lambda *all: headers.extend(all[:2])))
            return headers, answer

        def tell(status, kind, answer):
            start_response(status, [("Content-Type", kind), ("Content-Length", str(len(answer)))])
            return [answer]

        def hang_up():
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionError("hung up")

        if fault in REFUSALS:
            status, code, message = REFUSALS[fault]
            answer = (
                f"<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error>"
                "<RequestId>0</RequestId></ErrorResponse>"
            )
            return tell(status, "text/xml", answer.encode())
        if fault == "hang":
            until = time.monotonic() + HANG_SECONDS
            while time.monotonic() < until and self.fault(environ, action) == "hang":
                time.sleep(0.1)
            hang_up()
        if fault == "refused":
            hang_up()
        if fault == "lost":
            executed()
            hang_up()
        if fault == "slow":
            time.sleep(SLOW_SECONDS)
        if fault == "garbage":
            return tell("200 OK", "text/xml", b"<DescribeAutoScalingGroupsResponse><Descr")
        if fault == "portal":
            return tell("200 OK", "text/html", b"<html><body>Please log in</body></html>")
        if fault == "no-group":
            return tell("200 OK", "text/xml", NO_GROUPS)
        if fault == "no-instances":
            (status, headers), answer = executed()
            answer = re.sub(rb"<Instances>.*?</Instances>", b"<Instances/>", answer, flags=re.S)
            return tell(status, dict(headers).get("Content-Type", "text/xml"), answer)
        return self.application(environ, start_response)
