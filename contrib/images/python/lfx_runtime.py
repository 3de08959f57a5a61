"""Runtime client of the python stand-in image: runs a handler under the Lambda Runtime API.

The interpreter starts with -S and this module imports little, because every import is paid at
each cold start: the HTTP client is a few lines over _socket (http.client alone costs 30 ms),
site is only used when there are .pth files to honour, and logging is set up at the moment the
function imports it.
"""

import _socket
import io
import json
import os
import sys
import time

VERSION = "2018-06-01"
MAX_HEADER = 1 << 20

_request_id = ""  # of the invocation in progress; log records carry it


class RuntimeAPIError(Exception):
    """The Runtime API cannot be reached or gave an answer we cannot use."""


class Fault(Exception):
    """An error that the platform names itself, such as Runtime.ImportModuleError."""

    def __init__(self, error_type, message, trace=None):
        super().__init__(message)
        self.error_type = error_type
        self.message = message
        self.trace = trace or []


# --- HTTP/1.1 to the Runtime API -------------------------------------------------------------


class Connection:
    """One keep-alive connection; opened on first use, again after it was closed.

    request() has no time limit: `next` blocks for as long as there is nothing to do.
    """

    def __init__(self, address):
        host, sep, port = address.rpartition(":")
        if not sep or not host or not port.isdigit():
            raise RuntimeAPIError("AWS_LAMBDA_RUNTIME_API must be host:port, not %r" % address)
        self.host, self.port, self.address = host, int(port), address
        self.sock, self.rest = None, b""

    def request(self, method, path, body=None, headers=""):
        """Send one request; return (status, headers by lower-case name, body)."""
        head = "%s %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: lfx-python/1\r\n%s" % (
            method, path, self.address, headers)
        if body is not None:
            head += "Content-Length: %d\r\n" % len(body)
        data = head.encode("latin-1", "replace") + b"\r\n" + (body or b"")
        reused = self.sock is not None
        try:
            return self._exchange(data)
        except OSError as e:
            self.close()
            # An idle connection may have been closed under us; asking for the next event is
            # harmless to repeat, posting an answer is not.
            if not (reused and method == "GET"):
                raise RuntimeAPIError("%s %s on %s: %s" % (method, path, self.address, e)) from e
        try:
            return self._exchange(data)
        except OSError as e:
            self.close()
            raise RuntimeAPIError("%s %s on %s: %s" % (method, path, self.address, e)) from e

    def close(self):
        if self.sock is not None:
            self.sock.close()
        self.sock, self.rest = None, b""

    def _open(self):
        sock = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
        try:
            sock.connect((self.host, self.port))
            sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        except BaseException:
            sock.close()
            raise
        self.sock, self.rest = sock, b""

    def _exchange(self, data):
        if self.sock is None:
            self._open()
        refused = None
        try:
            self.sock.sendall(data)
        except OSError as e:  # the answer (413, say) may have come before all was sent
            refused = e
        try:
            status, headers = self._head()
        except OSError as e:
            raise refused or e
        if "chunked" in headers.get("transfer-encoding", "").lower():
            body = self._chunked()
        elif "content-length" in headers:
            body = self._take(int(headers["content-length"]))
        elif status == 204:
            body = b""
        else:
            body = self._until_close()
        if refused is not None or headers.get("connection", "").lower() == "close":
            self.close()
        return status, headers, body

    def _more(self):
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionResetError("the connection was closed")
        return data

    def _head(self):
        buf, start = self.rest, 0
        while (end := buf.find(b"\r\n\r\n", start)) < 0:
            if len(buf) > MAX_HEADER:
                raise OSError("the answer's header is larger than %d bytes" % MAX_HEADER)
            start = max(0, len(buf) - 3)
            buf += self._more()
        self.rest = buf[end + 4:]
        first, *lines = buf[:end].decode("latin-1").split("\r\n")
        parts = first.split(" ", 2)
        if not parts[0].startswith("HTTP/1.") or len(parts) < 2 or not parts[1].isdigit():
            raise OSError("not an HTTP answer: %r" % first[:80])
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        return int(parts[1]), headers

    def _take(self, size):
        chunks, have = [self.rest], len(self.rest)
        while have < size:
            data = self._more()
            chunks.append(data)
            have += len(data)
        whole = b"".join(chunks)
        self.rest = whole[size:]
        return whole[:size]

    def _line(self):
        while (end := self.rest.find(b"\r\n")) < 0:
            if len(self.rest) > MAX_HEADER:
                raise OSError("a line of the answer is larger than %d bytes" % MAX_HEADER)
            self.rest += self._more()
        line, self.rest = self.rest[:end], self.rest[end + 2:]
        return line

    def _chunked(self):
        parts = []
        while size := int(self._line().split(b";")[0], 16):
            parts.append(self._take(size))
            self._line()
        while self._line():  # trailers
            pass
        return b"".join(parts)

    def _until_close(self):
        parts = [self.rest]
        while data := self.sock.recv(65536):
            parts.append(data)
        self.close()
        return b"".join(parts)


class RuntimeAPI:
    """The calls of the Runtime API that a runtime makes."""

    def __init__(self, address):
        self.connection = Connection(address)

    def next(self):
        """Wait for an event; return (headers, body)."""
        status, headers, body = self.connection.request("GET", "/%s/runtime/invocation/next" % VERSION)
        if status != 200:
            raise RuntimeAPIError("next answered %d: %s" % (status, _excerpt(body)))
        return headers, body

    def respond(self, request_id, body, content_type):
        self._post("invocation/%s/response" % request_id, body, "Content-Type: %s\r\n" % content_type)

    def fail(self, request_id, error):
        self._post("invocation/%s/error" % request_id, *_error_request(error))

    def init_error(self, error):
        self._post("init/error", *_error_request(error))

    def _post(self, path, body, headers):
        status, _, answer = self.connection.request("POST", "/%s/runtime/%s" % (VERSION, path), body, headers)
        if not 200 <= status < 300:
            # Refused (too large, too late): that invocation is over for the platform, go on with the next.
            sys.stderr.write("runtime: %s answered %d: %s\n" % (path, status, _excerpt(answer)))
            sys.stderr.flush()


def _error_request(error):
    headers = "Content-Type: application/json\r\n"
    if error["errorType"].startswith(("Runtime.", "Function.")):
        headers += "Lambda-Runtime-Function-Error-Type: %s\r\n" % error["errorType"]
    return dumps(error).encode(), headers


def _excerpt(body):
    return body[:200].decode("utf-8", "replace").strip()


# --- What a handler is given, and what becomes of its answer -----------------------------------


class CognitoIdentity:
    """Identity of the caller, when a mobile SDK sent one."""

    __slots__ = ("cognito_identity_id", "cognito_identity_pool_id")

    def __init__(self, fields):
        self.cognito_identity_id = fields.get("cognitoIdentityId")
        self.cognito_identity_pool_id = fields.get("cognitoIdentityPoolId")

    def __repr__(self):
        return "CognitoIdentity([cognito_identity_id=%s,cognito_identity_pool_id=%s])" % (
            self.cognito_identity_id, self.cognito_identity_pool_id)


class Client:
    __slots__ = ("installation_id", "app_title", "app_version_name", "app_version_code", "app_package_name")

    def __init__(self, fields):
        for name in self.__slots__:
            setattr(self, name, fields.get(name))


class ClientContext:
    __slots__ = ("custom", "env", "client")

    def __init__(self, fields):
        self.custom, self.env = fields.get("custom"), fields.get("env")
        self.client = Client(fields["client"]) if isinstance(fields.get("client"), dict) else None


class LambdaContext:
    """The context object, with the attributes that handlers on AWS rely on."""

    def __init__(self, headers):
        env = os.environ.get
        self.aws_request_id = headers["lambda-runtime-aws-request-id"]
        self.invoked_function_arn = headers.get("lambda-runtime-invoked-function-arn")
        self.tenant_id = headers.get("lambda-runtime-aws-tenant-id")
        self.function_name = env("AWS_LAMBDA_FUNCTION_NAME")
        self.function_version = env("AWS_LAMBDA_FUNCTION_VERSION")
        self.memory_limit_in_mb = env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE")
        self.log_group_name = env("AWS_LAMBDA_LOG_GROUP_NAME")
        self.log_stream_name = env("AWS_LAMBDA_LOG_STREAM_NAME")
        self.client_context = _optional(ClientContext, headers.get("lambda-runtime-client-context"))
        self.identity = CognitoIdentity(_json_object(headers.get("lambda-runtime-cognito-identity")) or {})
        self._deadline_ms = int(headers.get("lambda-runtime-deadline-ms") or 0)

    def get_remaining_time_in_millis(self):
        return max(0, self._deadline_ms - int(time.time() * 1000))

    def log(self, message):
        sys.stdout.write(str(message))

    def __repr__(self):
        names = ("aws_request_id", "log_group_name", "log_stream_name", "function_name", "memory_limit_in_mb",
                 "function_version", "invoked_function_arn", "client_context", "identity", "tenant_id")
        return "LambdaContext([%s])" % ",".join("%s=%s" % (n, getattr(self, n)) for n in names)


def _json_object(text):
    """A header's JSON object; None when absent or not one (clients send what they like)."""
    if not text:
        return None
    try:
        value = json.loads(text.encode("latin-1"))
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _optional(cls, text):
    fields = _json_object(text)
    return None if fields is None else cls(fields)


def _json_default(value):
    decimal = sys.modules.get("decimal")  # a Decimal exists only where decimal was imported
    if decimal is not None and isinstance(value, decimal.Decimal):
        return int(value) if value.is_finite() and value.as_tuple().exponent >= 0 else float(value)
    raise TypeError("Object of type %s is not JSON serializable" % type(value).__name__)


def dumps(value):
    return json.dumps(value, default=_json_default)


def marshal(value):
    """Encode what a handler returned; return (bytes, content type)."""
    if isinstance(value, io.BufferedIOBase):
        return value.read(), "application/unknown"
    try:
        return dumps(value).encode(), "application/json"
    except Exception as e:
        raise Fault("Runtime.MarshalError", "Unable to marshal response: %s" % e) from e


# --- Errors ----------------------------------------------------------------------------------


def make_error(error_type, message, trace, request_id):
    return {"errorMessage": message, "errorType": error_type, "requestId": request_id, "stackTrace": trace}


def describe(exc, request_id):
    """The error object for any exception; the stack begins at the function's own code."""
    if isinstance(exc, Fault):
        return make_error(exc.error_type, exc.message, exc.trace, request_id)
    import traceback
    frames = traceback.extract_tb(exc.__traceback__)
    while frames and frames[0].filename == __file__:
        del frames[0]
    # importlib's own frames say nothing about the function
    frames = [f for f in frames if not f.filename.startswith("<frozen importlib")]
    try:
        message = str(exc)
    except Exception:
        message = ""
    return make_error(type(exc).__name__, message, traceback.format_list(frames), request_id)


def log_error(error):
    """Print the error as one record: inner line breaks are carriage returns, as on AWS."""
    if _log_json():
        print(dumps({"timestamp": _now(), "log_level": "ERROR", **error}), flush=True)
        return
    lines = ["[ERROR] %s: %s" % (error["errorType"], error["errorMessage"])]
    if error["stackTrace"]:
        lines.append("Traceback (most recent call last):")
        for element in error["stackTrace"]:
            lines += element.splitlines()
    print("\r".join(lines).replace("\n", "\r"), flush=True)


def _log_json():
    return os.environ.get("AWS_LAMBDA_LOG_FORMAT", "").upper() == "JSON"


def _now():
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


# --- Logging, set up when the function imports it --------------------------------------------


class LoggingFinder:
    """Import hook: configures `logging` right after its first import, then goes away."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name != "logging":
            return None
        sys.meta_path.remove(cls)
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                execute = spec.loader.exec_module
                spec.loader.exec_module = lambda module: (execute(module), setup_logging(module))
                return spec
        return None


def setup_logging(logging):
    """Give the root logger one handler that writes Lambda's record format to stdout."""

    class Text(logging.Formatter):
        converter = time.gmtime

        def format(self, record):
            record.aws_request_id = _request_id
            return super().format(record)

    class JSON(logging.Formatter):
        converter = time.gmtime

        def format(self, record):
            out = {"timestamp": self.formatTime(record, "%Y-%m-%dT%H:%M:%SZ"), "level": record.levelname,
                   "message": record.getMessage(), "logger": record.name}
            if _request_id:
                out["requestId"] = _request_id
            if record.exc_info:
                out["errorType"] = record.exc_info[0].__name__ if record.exc_info[0] else None
                out["errorMessage"] = str(record.exc_info[1])
                out["stackTrace"] = self.formatException(record.exc_info).splitlines()
            return json.dumps(out, default=str)

    class Stdout(logging.StreamHandler):
        # whatever sys.stdout is when the record comes: functions replace it
        stream = property(lambda self: sys.stdout, lambda self, value: None)

    handler = Stdout()
    if _log_json():
        handler.setFormatter(JSON())
    else:
        handler.setFormatter(Text(
            "[%(levelname)s]\t%(asctime)s.%(msecs)03dZ\t%(aws_request_id)s\t%(message)s", "%Y-%m-%dT%H:%M:%S"))
    logging.root.addHandler(handler)
    level = os.environ.get("AWS_LAMBDA_LOG_LEVEL", "").upper()
    if _log_json() and level:
        logging.root.setLevel({"TRACE": "DEBUG", "FATAL": "CRITICAL"}.get(level, level))


# --- Start -----------------------------------------------------------------------------------


def extend_path():
    """Order sys.path as Lambda does: the function, layers, Python's own, installed packages, the runtime.

    The interpreter ran without site, so directories with .pth files are handed to site now; without
    any, site (and what it imports) is not needed.
    """
    root = os.environ.get("LAMBDA_TASK_ROOT", "/var/task")
    runtime = os.path.dirname(os.path.abspath(__file__))
    tag = "python%d.%d" % sys.version_info[:2]
    own = [p for p in sys.path if p != runtime]
    front = [root, "/opt/python/lib/%s/site-packages" % tag, "/opt/python"]
    installed = ["/usr/local/lib/%s/dist-packages" % tag]
    sys.path[:] = front + own + installed + ["/usr/lib/python3/dist-packages", runtime]
    for directory in installed + front[1:2]:
        try:
            names = os.listdir(directory)
        except OSError:
            continue
        if any(n.endswith(".pth") for n in names):
            import site
            site.addsitedir(directory)


def add_exit():
    """exit() and quit(), which site would have added."""
    import builtins

    from _sitebuiltins import Quitter
    builtins.exit, builtins.quit = Quitter("exit", "Ctrl-D"), Quitter("quit", "Ctrl-D")


def load_handler(name):
    """The function that a handler name ("module.function", slashes allowed) stands for."""
    modname, dot, attribute = name.rpartition(".")
    if not dot or not modname or not attribute:
        raise Fault("Runtime.MalformedHandlerName", "Bad handler '%s': not enough values to unpack (expected 2, got 1)" % name)
    dotted = modname.replace("/", ".")
    if dotted in sys.builtin_module_names:
        raise Fault("Runtime.BuiltInModuleConflict", "Cannot use built-in module %s as a handler module" % modname)
    try:
        __import__(dotted)
        module = sys.modules[dotted]
    except (ImportError, ValueError) as e:
        if isinstance(e, ValueError) and e.__traceback__.tb_next is not None:
            raise  # the module's own
        raise Fault("Runtime.ImportModuleError", "Unable to import module '%s': %s" % (modname, e)) from e
    except SyntaxError as e:
        trace = ['  File "%s" Line %s\n    %s' % (e.filename, e.lineno, e.text)]
        raise Fault("Runtime.UserCodeSyntaxError", "Syntax error in module '%s': %s" % (modname, e), trace) from e
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise Fault("Runtime.HandlerNotFound", "Handler '%s' missing on module '%s'" % (attribute, modname)) from None


def invoke(handler, headers, body):
    """Run one event; return (answer, content type, None) or (None, None, error)."""
    request_id = headers["lambda-runtime-aws-request-id"]
    try:
        try:
            event = json.loads(body)
        except ValueError as e:
            raise Fault("Runtime.UnmarshalError", "Unable to unmarshal input: %s" % e) from e
        answer, content_type = marshal(handler(event, LambdaContext(headers)))
        return answer, content_type, None
    except Exception as e:
        error = describe(e, request_id)
        log_error(error)
        return None, None, error


def flush():
    """Send out what was printed: it belongs before the answer."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass


def serve(api, handler):
    """Take events and answer them for ever."""
    global _request_id
    while True:
        headers, body = api.next()
        _request_id = headers["lambda-runtime-aws-request-id"]
        trace = headers.get("lambda-runtime-trace-id")
        if trace:
            os.environ["_X_AMZN_TRACE_ID"] = trace
        else:
            os.environ.pop("_X_AMZN_TRACE_ID", None)
        answer, content_type, error = invoke(handler, headers, body)
        flush()
        if error is None:
            api.respond(_request_id, answer, content_type)
        else:
            api.fail(_request_id, error)
        _request_id = ""


def main():
    sys.dont_write_bytecode = True  # the root is read-only
    sys.argv[:] = [""]
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # a line is one write, and is out when it is printed
    extend_path()
    add_exit()
    sys.meta_path.insert(0, LoggingFinder)
    try:
        api = RuntimeAPI(os.environ.get("AWS_LAMBDA_RUNTIME_API", ""))
        try:
            handler = load_handler(os.environ.get("_HANDLER", ""))
        except Exception as e:
            error = describe(e, "")
            log_error(error)
            api.init_error(error)
            sys.exit(1)
        serve(api, handler)
    except RuntimeAPIError as e:
        sys.stderr.write("runtime: %s\n" % e)
        sys.exit(1)
