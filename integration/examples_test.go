//go:build integration

package integration

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"github.com/google/go-cmp/cmp"
)

// greeting is what every example answers.
type greeting struct {
	Message   string `json:"message"`
	Runtime   string `json:"runtime"`
	Greeting  string `json:"greeting"`
	RequestID string `json:"request_id"`
}

// TestExamples is the quick start: the examples as they stand, called as the README says.
func TestExamples(t *testing.T) {
	p := adopt(t, filepath.Join(d.root, "contrib/examples"))
	res := p.deploy()
	want := map[string]int{"hello-python": 1, "hello-go": 1, "hello-nodejs": 1}
	if res.Release.Number != 1 || !cmp.Equal(res.Release.Versions, want) {
		t.Fatalf("release %d with %v, want release 1 with %v", res.Release.Number, res.Release.Versions, want)
	}
	t.Run("curl", testExampleCalls)
	t.Run("awscli", testAWSCLI)
	t.Run("boto3", testBoto3)
	t.Run("aws-sdk-go-v2", testGoSDK)
	t.Run("labels", testImageNames)
	t.Run("unchanged", func(t *testing.T) {
		again := p.deploy()
		if !again.Unchanged || again.Release.Number != 1 {
			t.Errorf("a deploy that changes nothing: unchanged %v, release %d", again.Unchanged, again.Release.Number)
		}
	})
	t.Run("cli", testCLI)
}

func testExampleCalls(t *testing.T) {
	for _, c := range []struct {
		name, url, body, message, runtime string
		client                            *http.Client
	}{
		{"default function", invokeURL("function"), "{}", "Hello, world!", "python", http.DefaultClient},
		{"port 9001", "http://localhost:9001/2015-03-31/functions/function/invocations", `{"name":"steve2"}`, "Hello, steve2!", "go", http.DefaultClient},
		{"port 9002", "http://localhost:9002/2015-03-31/functions/function/invocations", `{"name":"steve2"}`, "Hello, steve2!", "nodejs", http.DefaultClient},
		{"by name", invokeURL("hello-nodejs"), `{"name":"x"}`, "Hello, x!", "nodejs", http.DefaultClient},
		{"unix socket", "http://lfx/2015-03-31/functions/hello-go/invocations", `{"name":"x"}`, "Hello, x!", "go", overSocket("invoke.sock")},
		{"control socket", "http://lfx/2015-03-31/functions/hello-go/invocations", ``, "Hello, world!", "go", overSocket("lfxd.sock")},
		{"host name", invokeURL("hello-go"), `{}`, "Hello, world!", "go", http.DefaultClient},
	} {
		t.Run(c.name, func(t *testing.T) {
			var headers []string
			if c.name == "host name" {
				headers = []string{"Host", "examples.localhost:9000"}
			}
			a := do(t, c.client, "POST", c.url, c.body, headers...)
			var g greeting
			if err := json.Unmarshal([]byte(a.body), &g); a.status != 200 || err != nil {
				t.Fatalf("status %d, body %q, %v", a.status, a.body, err)
			}
			if g.Message != c.message || g.Runtime != c.runtime || g.Greeting != "Hello" {
				t.Errorf("got %+v, want %q from %s", g, c.message, c.runtime)
			}
			if id := a.header.Get("x-amzn-RequestId"); id == "" || id != g.RequestID {
				t.Errorf("request id of the answer is %q, of the function %q", id, g.RequestID)
			}
			if v, r := a.header.Get("X-Amz-Executed-Version"), a.header.Get("X-Lfx-Release"); v != "1" || r != "1" {
				t.Errorf("executed version %q of release %q, want 1 of 1", v, r)
			}
		})
	}
}

func testAWSCLI(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out.json")
	cmd := exec.Command("/usr/bin/aws", "lambda", "invoke", "--endpoint-url", "http://localhost:9000", "--function-name", "hello-python", out)
	cmd.Env = append(os.Environ(), "AWS_ACCESS_KEY_ID=x", "AWS_SECRET_ACCESS_KEY=x", "AWS_DEFAULT_REGION=us-east-1", "AWS_PAGER=", "PYTHONPATH=")
	text, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("aws: %v\n%s", err, text)
	}
	answer, err := os.ReadFile(out)
	if err != nil || !strings.Contains(string(answer), "Hello, world!") {
		t.Errorf("out.json is %q, %v", answer, err)
	}
	var printed struct {
		StatusCode      int
		ExecutedVersion string
	}
	if err := json.Unmarshal(text, &printed); err != nil || printed.StatusCode != 200 || printed.ExecutedVersion != "1" {
		t.Errorf("aws printed %s, %v", text, err)
	}
}

func testBoto3(t *testing.T) {
	cmd := exec.Command("/usr/bin/python3", "-c", `
import base64, boto3, json
from botocore.config import Config
c = boto3.client("lambda", endpoint_url="http://localhost:9000", region_name="us-east-1",
    aws_access_key_id="x", aws_secret_access_key="x", config=Config(retries={"max_attempts": 0}))
r = c.invoke(FunctionName="hello-go", Payload=json.dumps({"name": "boto"}), LogType="Tail",
    ClientContext=base64.b64encode(b'{"custom":{"a":"b"}}').decode())
assert r["StatusCode"] == 200 and r["ExecutedVersion"] == "1" and "FunctionError" not in r, r
assert json.load(r["Payload"])["message"] == "Hello, boto!"
log = base64.b64decode(r["LogResult"]).decode()
rid = r["ResponseMetadata"]["RequestId"]
assert log.startswith("START RequestId: " + rid) and "\nEND RequestId: " + rid in log and "\tBilled Duration: " in log, log
assert "greeting boto" in log.split("END RequestId")[0], log
assert c.invoke(FunctionName="hello-go", InvocationType="DryRun")["StatusCode"] == 204
arn = "arn:aws:lambda:us-east-1:%s:function:hello-go"
try:
    c.invoke(FunctionName="nope")
    raise SystemExit("no error for an unknown function")
except c.exceptions.ResourceNotFoundException as e:
    assert "Function not found: arn:aws:lambda:us-east-1:" in str(e) and ":function:nope" in str(e), e
try:
    c.invoke(FunctionName="hello-go", Payload=b"{nope")
    raise SystemExit("no error for a payload that is not JSON")
except c.exceptions.InvalidRequestContentException as e:
    assert "Could not parse request body into json" in str(e), e
try:
    c.invoke(FunctionName="hello-go", InvocationType="Event")
    raise SystemExit("no error for Event")
except c.exceptions.InvalidParameterValueException as e:
    assert "Event" in str(e), e
try:
    c.invoke(FunctionName="hello-go", Payload=b'"' + b"x" * (6 << 20) + b'"')
    raise SystemExit("no error for a payload above 6 MiB")
except c.exceptions.RequestTooLargeException as e:
    assert "6291456" in str(e), e
print("ok")
`)
	cmd.Env = append(os.Environ(), "PYTHONPATH=")
	out, err := cmd.CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "ok" {
		t.Errorf("boto3: %v\n%s", err, out)
	}
}

func testGoSDK(t *testing.T) {
	c := lambda.New(lambda.Options{
		BaseEndpoint: aws.String("http://localhost:9000"), Region: "us-east-1",
		Credentials: credentials.NewStaticCredentialsProvider("x", "x", ""),
	})
	ctx := context.Background()
	functions, err := d.client.Functions(ctx, functionEnvironment("examples"))
	if err != nil || len(functions) != 3 {
		t.Fatalf("functions: %v, %v", functions, err)
	}
	arn := functions[0].ARN // hello-go
	for _, name := range []string{"hello-go", arn, arn + ":$LATEST", "function:hello-go", functions[0].Account + ":function:hello-go:1"} {
		out, err := c.Invoke(ctx, &lambda.InvokeInput{FunctionName: &name, Payload: []byte(`{"name":"sdk"}`), LogType: types.LogTypeTail})
		if err != nil {
			t.Errorf("invoke %s: %v", name, err)
			continue
		}
		log, _ := base64.StdEncoding.DecodeString(aws.ToString(out.LogResult)) // an empty log fails below
		if !strings.Contains(string(out.Payload), "Hello, sdk!") || !strings.Contains(string(log), "REPORT RequestId: ") {
			t.Errorf("invoke %s: payload %s, log %q", name, out.Payload, log)
		}
	}
	for qualifier, ok := range map[string]bool{"1": true, "$LATEST": true, "r1": true, "2": false, "r2": false, "live": true, "previous": false, "nope": false} {
		_, err := c.Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String("hello-go"), Qualifier: &qualifier})
		if (err == nil) != ok {
			t.Errorf("qualifier %s: %v", qualifier, err)
		}
	}
}

// testImageNames holds the images against the names, annotations and labels that they must have.
func testImageNames(t *testing.T) {
	images, err := d.list("images", "ls", "-q")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"localhost:9000/examples/hello-go:v1", "localhost:9000/examples/hello-go:r1", "localhost:9000/examples/hello-python:v1",
		"localhost:9000/examples/hello-nodejs:r1",
	} {
		if !strings.Contains(strings.Join(images, "\n"), want) {
			t.Errorf("there is no image %s among %q", want, images)
		}
	}
	stdout, stderr, code := lfxctl("inspect", "hello-python", "-o", "json")
	var got struct {
		Active struct {
			Image struct {
				Digest   string `json:"digest"`
				BaseName string `json:"base_name"`
				Context  string `json:"context"`
			} `json:"image"`
		} `json:"active"`
	}
	if err := json.Unmarshal([]byte(stdout), &got); code != 0 || err != nil {
		t.Fatalf("inspect: %d %s %v", code, stderr, err)
	}
	manifest, err := d.ctr("content", "get", got.Active.Image.Digest)
	if err != nil {
		t.Fatal(err)
	}
	var m struct {
		Annotations map[string]string `json:"annotations"`
	}
	if err := json.Unmarshal([]byte(manifest), &m); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{
		"org.opencontainers.image.version": "1", "org.opencontainers.image.title": "hello-python", "org.opencontainers.image.ref.name": "v1",
		"org.opencontainers.image.base.name": "localhost/lfx-base/python:3.11",
		"dev.lfx.project":                    "examples", "dev.lfx.environment": "default", "dev.lfx.function": "hello-python", "dev.lfx.release": "1",
	} {
		if m.Annotations[key] != want {
			t.Errorf("annotation %s = %q, want %q", key, m.Annotations[key], want)
		}
	}
	for _, key := range []string{"org.opencontainers.image.created", "org.opencontainers.image.base.digest", "org.opencontainers.image.source"} {
		if m.Annotations[key] == "" {
			t.Errorf("annotation %s is missing", key)
		}
	}
	stored := filepath.Join(d.state, "contexts", strings.TrimPrefix(got.Active.Image.Context, "sha256:")+".tar.zst")
	if _, err := os.Stat(stored); got.Active.Image.Context == "" || err != nil {
		t.Errorf("the build context is not stored: %v", err)
	}
}

func testCLI(t *testing.T) {
	for _, c := range []struct {
		args []string
		want []string
	}{
		{[]string{"ls"}, []string{"hello-go", "hello-nodejs", "hello-python", "9001"}},
		{[]string{"invoke", "hello-go", "-d", `{"name":"cli"}`}, []string{"Hello, cli!"}},
		{[]string{"inspect", "hello-go"}, []string{"hello-go"}},
		{[]string{"logs", "hello-go"}, []string{"greeting cli"}},
		{[]string{"releases"}, []string{"1", "active"}},
		{[]string{"ps"}, []string{"hello-go", "lfx-"}},
		{[]string{"version"}, []string{"2.4.2"}},
		{[]string{"doctor"}, []string{"containerd", "firewall"}},
		{[]string{"completion", "bash"}, []string{"lfxctl"}},
	} {
		stdout, stderr, code := lfxctl(c.args...)
		for _, want := range c.want {
			if code != 0 || !strings.Contains(stdout, want) {
				t.Errorf("lfxctl %s: exit %d, no %q in\n%s%s", strings.Join(c.args, " "), code, want, stdout, stderr)
				break
			}
		}
	}
	stdout, stderr, code := lfxctl("invoke", "hello-python", "--log")
	if code != 0 || !strings.HasPrefix(stdout, "{") || !strings.Contains(stderr, "REPORT RequestId") {
		t.Errorf("invoke --log: exit %d, stdout %q, stderr %q", code, stdout, stderr)
	}
	testStory(t)
	_, stderr, code = lfxctl("invoke", "nope")
	if code == 0 || !strings.Contains(stderr, "nope") {
		t.Errorf("invoke of an unknown function: exit %d, %q", code, stderr)
	}
	_ = fmt.Sprint
}

// testStory looks for one call in its record, its log and the figures.
func testStory(t *testing.T) {
	stdout, stderr, code := lfxctl("invoke", "hello-go", "-d", `{"name":"story"}`, "-o", "json")
	var call struct {
		RequestID string `json:"request_id"`
	}
	if err := json.Unmarshal([]byte(stdout), &call); err != nil || code != 0 || call.RequestID == "" {
		t.Fatalf("invoke: exit %d, %v\n%s%s", code, err, stdout, stderr)
	}
	stdout, stderr, code = lfxctl("why", call.RequestID)
	for _, want := range []string{"examples/hello-go, version 1 of release 1", "ok, status 200", "greeting story", "REPORT RequestId: " + call.RequestID} {
		if code != 0 || !strings.Contains(stdout, want) {
			t.Errorf("why: exit %d, no %q in\n%s%s", code, want, stdout, stderr)
		}
	}
	stdout, stderr, code = lfxctl("metrics")
	if want := `lfx_requests_total{project="examples",environment="default",function="hello-go",version="1",release="1",outcome="ok"}`; code != 0 || !strings.Contains(stdout, want) {
		t.Errorf("metrics: exit %d, no %q in\n%s%s", code, want, stdout, stderr)
	}
}
