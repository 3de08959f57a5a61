"""A runtime that answers several events at once: one thread for each that AWS_LAMBDA_MAX_CONCURRENCY allows, each with
a next call of its own. Its function waits until as many of its invocations run as the event asks for."""

import http.client
import json
import os
import socket
import threading

API = os.environ["AWS_LAMBDA_RUNTIME_API"]
PREFIX = "/2018-06-01/runtime/invocation/"
changed = threading.Condition()
running = most = 0


def handle(event):
    """Returns who answered, and the most invocations that ever ran here at once."""
    global running, most
    with changed:
        running += 1
        most = max(most, running)
        changed.notify_all()
        met = changed.wait_for(lambda: most >= event["together"], timeout=event["wait"])
        running -= 1
        return {"instance": socket.gethostname(), "most": most, "met": met, "limit": os.environ.get("AWS_LAMBDA_MAX_CONCURRENCY")}


def loop():
    conn = http.client.HTTPConnection(API)
    while True:
        conn.request("GET", PREFIX + "next")
        got = conn.getresponse()
        event = json.loads(got.read())
        if got.status != 200:
            raise SystemExit(f"next: {got.status} {event}")
        request_id = got.headers["Lambda-Runtime-Aws-Request-Id"]
        print(json.dumps({"requestId": request_id, "message": "begun"}), flush=True)
        conn.request("POST", f"{PREFIX}{request_id}/response", json.dumps(handle(event)))
        conn.getresponse().read()


threads = [threading.Thread(target=loop) for _ in range(int(os.environ.get("AWS_LAMBDA_MAX_CONCURRENCY", "1")))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
