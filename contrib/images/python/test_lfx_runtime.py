"""Tests of the runtime client against a small Runtime API: python3 -m unittest -v (in this folder)."""

import http.server
import json
import os
import queue
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
ARN = "arn:aws:lambda:us-east-1:000000000000:function:f"


class FakeAPI(http.server.ThreadingHTTPServer):
    """Hands out the queued events one by one and keeps what is posted."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.events, self.posts, self.connections = queue.Queue(), queue.Queue(), set()
        self.answers = {}  # path suffix -> status
        self.chunked = self.close_after_next = False
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address):
        pass  # the runtime was killed while it waited


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.server.connections.add(self.client_address)
        event, headers = self.server.events.get()
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.server.chunked:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for i in range(0, len(event), 7):
                part = event[i:i + 7]
                self.wfile.write(b"%x;ext=1\r\n%s\r\n" % (len(part), part))
                self.wfile.flush()
            self.wfile.write(b"0\r\nTrailer: x\r\n\r\n")
        else:
            self.send_header("Content-Length", str(len(event)))
            self.end_headers()
            self.wfile.write(event)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status = next((s for p, s in self.server.answers.items() if self.path.endswith(p)), 202)
        self.send_response(status)
        self.send_header("Content-Length", "0")
        if self.server.close_after_next:
            self.close_connection = True  # without saying so: the client finds out when it next writes
        self.end_headers()
        self.server.posts.put((self.path, dict(self.headers), body))


class RuntimeTest(unittest.TestCase):
    def setUp(self):
        self.api = FakeAPI()
        self.addCleanup(self.api.server_close)
        self.addCleanup(self.api.shutdown)
        self.root = tempfile.TemporaryDirectory()
        self.addCleanup(self.root.cleanup)
        self.process = None
        self.addCleanup(self.stop)
        self.count = 0

    def start(self, code, handler="app.handler", name="app.py", **env):
        path = os.path.join(self.root.name, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as f:
            f.write(textwrap.dedent(code))
        self.process = subprocess.Popen(
            [sys.executable, "-S", os.path.join(HERE, "bootstrap")],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=self.root.name,
            env={"PATH": os.environ["PATH"], "_HANDLER": handler, "LAMBDA_TASK_ROOT": self.root.name,
                 "AWS_LAMBDA_RUNTIME_API": "127.0.0.1:%d" % self.api.server_port,
                 "AWS_LAMBDA_FUNCTION_NAME": "f", "AWS_LAMBDA_FUNCTION_VERSION": "3",
                 "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "256", "AWS_LAMBDA_LOG_GROUP_NAME": "/aws/lambda/f",
                 "AWS_LAMBDA_LOG_STREAM_NAME": "s", **env})

    def stop(self):
        """End the runtime; return what it printed."""
        if self.process is None:
            return "", ""
        process, self.process = self.process, None
        process.kill()
        out, err = process.communicate(timeout=10)
        return out.decode(), err.decode()

    def finish(self):
        """Wait until the runtime ends by itself; return (exit status, stdout, stderr)."""
        process, self.process = self.process, None
        try:
            out, err = process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            self.fail("the runtime did not exit: %s %s" % process.communicate())
        return process.returncode, out.decode(), err.decode()

    def post(self):
        try:
            return self.api.posts.get(timeout=10)
        except queue.Empty:
            self.fail("the runtime posted nothing: %s %s" % self.stop())

    def invoke(self, event, **headers):
        self.count += 1
        rid = "id-%d" % self.count
        self.api.events.put((event if isinstance(event, bytes) else json.dumps(event).encode(), {
            "Lambda-Runtime-Aws-Request-Id": rid,
            "Lambda-Runtime-Deadline-Ms": str(int(time.time() * 1000) + 3000),
            "Lambda-Runtime-Invoked-Function-Arn": ARN,
            **{k.replace("_", "-"): v for k, v in headers.items()}}))
        path, got, body = self.post()
        self.assertIn("/2018-06-01/runtime/invocation/%s/" % rid, path)
        return path.rsplit("/", 1)[1], body, got

    def test_answers_and_keeps_its_connection(self):
        self.start("def handler(event, context): return {'got': event, 'n': 1.5}")
        for i in range(3):
            self.assertEqual(self.invoke({"i": i})[:2], ("response", b'{"got": {"i": %d}, "n": 1.5}' % i))
        self.assertEqual(len(self.api.connections), 1)

    def test_context(self):
        self.start("""
            import os
            def handler(event, c):
                return [c.aws_request_id, c.function_name, c.function_version, c.memory_limit_in_mb,
                        c.invoked_function_arn, c.log_group_name, c.log_stream_name,
                        0 < c.get_remaining_time_in_millis() <= 3000, c.client_context.custom["k"],
                        c.client_context.client.app_title, c.identity.cognito_identity_id,
                        os.environ.get("_X_AMZN_TRACE_ID"), "LambdaContext([" in repr(c)]
            """)
        kind, body, _ = self.invoke({}, Lambda_Runtime_Trace_Id="Root=1-2-3",
                                    Lambda_Runtime_Client_Context='{"custom":{"k":"v"},"client":{"app_title":"t"}}',
                                    Lambda_Runtime_Cognito_Identity='{"cognitoIdentityId":"c"}')
        self.assertEqual((kind, json.loads(body)), ("response", [
            "id-1", "f", "3", "256", ARN, "/aws/lambda/f", "s", True, "v", "t", "c", "Root=1-2-3", True]))

    def test_optional_headers_absent_or_broken(self):
        self.start("""
            import os
            def handler(event, c):
                return [c.client_context, c.identity.cognito_identity_id, os.environ.get("_X_AMZN_TRACE_ID")]
            """)
        self.invoke({}, Lambda_Runtime_Trace_Id="Root=1")
        for broken in ("", "nonsense", "[1]"):
            self.assertEqual(self.invoke({}, Lambda_Runtime_Client_Context=broken)[1], b"[null, null, null]")

    def test_exception(self):
        self.start("""
            class Custom(Exception): pass
            def inner(): raise Custom("bad\\nthing")
            def handler(event, context): inner()
            """)
        kind, body, headers = self.invoke({})
        error = json.loads(body)
        self.assertEqual(kind, "error")
        self.assertEqual(list(error), ["errorMessage", "errorType", "requestId", "stackTrace"])
        self.assertEqual((error["errorMessage"], error["errorType"], error["requestId"]), ("bad\nthing", "Custom", "id-1"))
        self.assertEqual(len(error["stackTrace"]), 2)
        self.assertIn("in handler\n    def handler(event, context): inner()", error["stackTrace"][0])
        self.assertNotIn("Lambda-Runtime-Function-Error-Type", headers)
        out, _ = self.stop()
        self.assertEqual(out.count("\n"), 1, repr(out))
        self.assertTrue(out.startswith("[ERROR] Custom: bad\rthing\rTraceback (most recent call last):\r"), out)

    def test_goes_on_after_an_error(self):
        self.start("def handler(event, context): return 1 / event")
        self.assertEqual(self.invoke(0)[0], "error")
        self.assertEqual(self.invoke(2)[:2], ("response", b"0.5"))

    def test_unserialisable_answer(self):
        self.start("def handler(event, context): return {1, 2}")
        kind, body, headers = self.invoke({})
        error = json.loads(body)
        self.assertEqual((kind, error["errorType"], error["stackTrace"]), ("error", "Runtime.MarshalError", []))
        self.assertEqual(error["errorMessage"], "Unable to marshal response: Object of type set is not JSON serializable")
        self.assertEqual(headers["Lambda-Runtime-Function-Error-Type"], "Runtime.MarshalError")

    def test_event_that_is_not_json(self):
        self.start("def handler(event, context): return 1")
        self.assertEqual(json.loads(self.invoke(b"{")[1])["errorType"], "Runtime.UnmarshalError")

    def test_answers_of_other_kinds(self):
        self.start("""
            import decimal, io
            def handler(event, context):
                return {"dec": [decimal.Decimal("1.25"), decimal.Decimal("10")], "uni": "h\\u00e9", "none": None,
                        "raw": io.BytesIO(b"\\x00\\xff")}[event]
            """)
        self.assertEqual(self.invoke("dec")[1], b"[1.25, 10]")
        self.assertEqual(self.invoke("uni")[1], b'"h\\u00e9"')
        self.assertEqual(self.invoke("none")[1], b"null")
        _, body, headers = self.invoke("raw")
        self.assertEqual((body, headers["Content-Type"]), (b"\x00\xff", "application/unknown"))

    def init_error(self, code, handler="app.handler", name="app.py"):
        self.start(code, handler, name)
        path, headers, body = self.post()
        self.assertEqual(path, "/2018-06-01/runtime/init/error")
        status, out, err = self.finish()
        self.assertEqual(status, 1)
        self.assertIn("[ERROR]", out)
        error = json.loads(body)
        self.assertEqual(error["requestId"], "")
        return error, headers.get("Lambda-Runtime-Function-Error-Type")

    def test_init_errors(self):
        for code, handler, want, message in (
            ("import nothere", "app.handler", "Runtime.ImportModuleError", "Unable to import module 'app': No module named 'nothere'"),
            ("", "other.handler", "Runtime.ImportModuleError", "Unable to import module 'other': No module named 'other'"),
            ("x = 1", "app.handler", "Runtime.HandlerNotFound", "Handler 'handler' missing on module 'app'"),
            ("def handler(:", "app.handler", "Runtime.UserCodeSyntaxError", "Syntax error in module 'app': "),
            ("", "handler", "Runtime.MalformedHandlerName", "Bad handler 'handler': "),
            ("", "sys.exit", "Runtime.BuiltInModuleConflict", "Cannot use built-in module sys as a handler module"),
        ):
            with self.subTest(want=want, handler=handler):
                error, header = self.init_error(code, handler)
                self.assertEqual((error["errorType"], header), (want, want))
                self.assertTrue(error["errorMessage"].startswith(message), error)

    def test_init_exception_of_the_function(self):
        error, header = self.init_error("raise KeyError('k')")
        self.assertEqual((error["errorType"], error["errorMessage"], header), ("KeyError", "'k'", None))
        self.assertEqual(len(error["stackTrace"]), 1)
        self.assertIn("app.py", error["stackTrace"][0])

    def test_handler_in_a_folder(self):
        self.start("def handler(event, context): return __name__", "sub/app.handler", "sub/app.py")
        self.assertEqual(self.invoke({})[1], b'"sub.app"')

    def test_logging(self):
        self.start("""
            import logging
            log = logging.getLogger()
            log.setLevel("INFO")
            def handler(event, context):
                print("plain")
                log.info("hello %s", "x")
                logging.getLogger("lib").warning("careful")
            """)
        self.invoke({})
        lines = self.stop()[0].splitlines()
        self.assertEqual(lines[0], "plain")
        self.assertRegex(lines[1], r"^\[INFO\]\t\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\tid-1\thello x$")
        self.assertRegex(lines[2], r"^\[WARNING\]\t.*\tid-1\tcareful$")

    def test_logging_json(self):
        self.start("""
            import logging
            def handler(event, context):
                logging.info("hello")
                try: 1/0
                except ZeroDivisionError: logging.exception("oops")
            """, AWS_LAMBDA_LOG_FORMAT="JSON", AWS_LAMBDA_LOG_LEVEL="INFO")
        self.invoke({})
        records = [json.loads(line) for line in self.stop()[0].splitlines()]
        self.assertEqual([(r["level"], r["message"], r["requestId"]) for r in records],
                         [("INFO", "hello", "id-1"), ("ERROR", "oops", "id-1")])
        self.assertEqual(records[1]["errorType"], "ZeroDivisionError")

    def test_print_is_out_before_the_answer(self):
        self.start("def handler(event, context): print('no newline', end='')")
        self.invoke({})
        self.assertEqual(self.stop()[0], "no newline")

    def test_exit_status_is_the_functions(self):
        self.start("import sys\ndef handler(event, context): exit(7)")
        self.api.events.put((b"{}", {"Lambda-Runtime-Aws-Request-Id": "id-1"}))
        self.assertEqual(self.finish()[0], 7)

    def test_chunked_events(self):
        self.api.chunked = True
        self.start("def handler(event, context): return len(event)")
        for size in (1, 5, 100000):
            self.assertEqual(self.invoke("x" * size)[1], b"%d" % size)

    def test_large_payload(self):
        self.start("def handler(event, context): return event")
        event = "x" * (6 << 20)
        self.assertEqual(self.invoke(event)[1], json.dumps(event).encode())

    def test_refused_answer_is_not_the_end(self):
        self.api.answers["id-1/response"] = 413
        self.start("def handler(event, context): return 1")
        self.invoke({})
        self.assertEqual(self.invoke({})[1], b"1")
        self.assertIn("invocation/id-1/response answered 413", self.stop()[1])

    def test_reconnects_for_the_next_event(self):
        self.api.close_after_next = True
        self.start("def handler(event, context): return 1")
        self.invoke({})
        self.assertEqual(self.invoke({})[1], b"1")
        self.assertGreater(len(self.api.connections), 1)

    def test_api_that_is_not_there(self):
        self.start("def handler(event, context): return 1", AWS_LAMBDA_RUNTIME_API="127.0.0.1:1")
        status, _, err = self.finish()
        self.assertEqual(status, 1)
        self.assertIn("127.0.0.1:1", err)
        self.start("def handler(event, context): return 1", AWS_LAMBDA_RUNTIME_API="nonsense")
        status, _, err = self.finish()
        self.assertEqual((status, err), (1, "runtime: AWS_LAMBDA_RUNTIME_API must be host:port, not 'nonsense'\n"))

    def test_imports_stay_few(self):
        self.start("""
            import sys
            def handler(event, context):
                return sorted(m for m in ("http", "email", "ssl", "logging", "traceback", "urllib", "socket") if m in sys.modules)
            """)
        self.assertEqual(self.invoke({})[1], b"[]")


if __name__ == "__main__":
    unittest.main()
