package function

import (
	"encoding/json"
	"errors"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

func TestDefaultConfigIsValid(t *testing.T) {
	if err := ValidateConfig(DefaultConfig()).Err(); err != nil {
		t.Error(err)
	}
}

func TestValidateSpec(t *testing.T) {
	for _, c := range []struct {
		what        string
		change      func(*Spec)
		field, says string
	}{
		{"fine", func(s *Spec) {}, "", ""},
		{"root as context", func(s *Spec) { s.Build.Context = "." }, "", ""},
		{"image", func(s *Spec) { s.Build, s.Image = nil, "public.ecr.aws/lambda/python:3.13" }, "", ""},
		{"short image", func(s *Spec) { s.Build, s.Image = nil, "alpine" }, "", ""},
		{"empty command", func(s *Spec) { s.Config.Command = []string{} }, "", ""},
		{"largest", func(s *Spec) {
			s.Config.MemoryMB, s.Config.TmpMB, s.Config.CPU, s.Config.Timeout, s.Port = 10240, 10240, 64, 15*time.Minute, 65535
		}, "", ""},
		{"name", func(s *Spec) { s.Name = "a b" }, "", "holds ' '"},
		{"no source", func(s *Spec) { s.Build = nil }, "", "neither build nor image"},
		{"two sources", func(s *Spec) { s.Image = "alpine" }, "image", "beside build"},
		{"bad image", func(s *Spec) { s.Build, s.Image = nil, "Alpine:" }, "image", "not an image reference"},
		{"no context", func(s *Spec) { s.Build.Context = "" }, "build", "no context"},
		{"absolute context", func(s *Spec) { s.Build.Context = "/etc" }, "build.context", "absolute"},
		{"drive", func(s *Spec) { s.Build.Context = "c:/x" }, "build.context", "absolute"},
		{"escape", func(s *Spec) { s.Build.Context = "a/../../b" }, "build.context", "outside"},
		{"parent", func(s *Spec) { s.Build.Context = ".." }, "build.context", "outside"},
		{"spelling", func(s *Spec) { s.Build.Context = "./a" }, "build.context", "write a"},
		{"backslash", func(s *Spec) { s.Build.Context = `a\b` }, "build.context", "backslash"},
		{"url", func(s *Spec) { s.Build.Context = "https://x/y" }, "build.context", "not a folder"},
		{"dockerfile", func(s *Spec) { s.Build.Dockerfile = "../Dockerfile" }, "build.dockerfile", "outside the context"},
		{"target", func(s *Spec) { s.Build.Target = "a b" }, "build.target", "build stage"},
		{"syntax", func(s *Spec) { s.Build.Args = map[string]string{"BUILDKIT_SYNTAX": "x"} }, "build.args.BUILDKIT_SYNTAX", "refused"},
		{"arg name", func(s *Spec) { s.Build.Args = map[string]string{"A-B": "x"} }, "build.args.A-B", "not the name"},
		{"memory", func(s *Spec) { s.Config.MemoryMB = 127 }, "memory", "out of range"},
		{"tmp", func(s *Spec) { s.Config.TmpMB = 63 }, "tmp", "out of range"},
		{"timeout", func(s *Spec) { s.Config.Timeout = time.Second - 1 }, "timeout", "out of range"},
		{"long timeout", func(s *Spec) { s.Config.Timeout = 15*time.Minute + 1 }, "timeout", "out of range"},
		{"fine timeout", func(s *Spec) { s.Config.Timeout += time.Microsecond }, "timeout", "whole milliseconds"},
		{"cpu", func(s *Spec) { s.Config.CPU = 0.001 }, "cpu", "out of range"},
		{"nan", func(s *Spec) { s.Config.CPU = math.NaN() }, "cpu", "out of range"},
		{"negative cpu", func(s *Spec) { s.Config.CPU = -1 }, "cpu", "out of range"},
		{"reserved", func(s *Spec) { s.Config.Environment = map[string]string{"AWS_REGION": "x"} }, "environment.AWS_REGION", "reserved"},
		{"handler", func(s *Spec) { s.Config.Environment = map[string]string{"_HANDLER": "x"} }, "environment._HANDLER", "reserved"},
		{"underscore", func(s *Spec) { s.Config.Environment = map[string]string{"_A": "x"} }, "environment._A", "not a name"},
		{"one letter", func(s *Spec) { s.Config.Environment = map[string]string{"A": "x"} }, "environment.A", "not a name"},
		{"nul", func(s *Spec) { s.Config.Environment = map[string]string{"AB": "\x00"} }, "environment.AB", "not text"},
		{"4 KB", func(s *Spec) { s.Config.Environment = map[string]string{"AB": strings.Repeat("x", 4096)} }, "environment", "exceeded the 4KB limit"},
		{"args", func(s *Spec) { s.Config.Command = make([]string, 1501) }, "command", "1501 items"},
		{"empty program", func(s *Spec) { s.Config.Entrypoint = []string{""} }, "entrypoint", "empty string"},
		{"relative workdir", func(s *Spec) { s.Config.Workdir = "var" }, "workdir", "not absolute"},
		{"proc", func(s *Spec) { s.Config.Workdir = "/var/..//proc/self/fd/7" }, "workdir", "below /proc"},
		{"dev", func(s *Spec) { s.Config.Workdir = "/dev" }, "workdir", "below /dev"},
		{"device is fine", func(s *Spec) { s.Config.Workdir = "/devices" }, "", ""},
		{"long workdir", func(s *Spec) { s.Config.Workdir = "/" + strings.Repeat("x", 1000) }, "workdir", "1001 characters"},
		{"min above max", func(s *Spec) { s.Config.Concurrency = Concurrency{Min: 3, Max: 2} }, "concurrency.min", "above max"},
		{"min alone", func(s *Spec) { s.Config.Concurrency = Concurrency{Min: 3} }, "", ""},
		{"stopped", func(s *Spec) { s.Config.Concurrency.Stopped = true }, "", ""},
		{"stopped with min", func(s *Spec) { s.Config.Concurrency = Concurrency{Min: 3, Stopped: true} }, "concurrency.min", "above max, 0"},
		{"stopped with max", func(s *Spec) { s.Config.Concurrency = Concurrency{Max: 3, Stopped: true} }, "concurrency.max", "stopped"},
		{"several at once", func(s *Spec) { s.Config.Concurrency.PerInstance = 64 }, "", ""},
		{"one at once", func(s *Spec) { s.Config.Concurrency.PerInstance = 1 }, "concurrency.per_instance", "out of range: 2 to 64"},
		{"too many at once", func(s *Spec) { s.Config.Concurrency.PerInstance = 65 }, "concurrency.per_instance", "65 is out of range"},
		{"fewer than none at once", func(s *Spec) { s.Config.Concurrency.PerInstance = -1 }, "concurrency.per_instance", "-1 is out of range"},
		{"own concurrency", func(s *Spec) { s.Config.Environment = map[string]string{"AWS_LAMBDA_MAX_CONCURRENCY": "4"} }, "environment.AWS_LAMBDA_MAX_CONCURRENCY", "write concurrency.per_instance"},
		{"negative min", func(s *Spec) { s.Config.Concurrency.Min = -1 }, "concurrency.min", "out of range"},
		{"port", func(s *Spec) { s.Port = 65536 }, "port", "not a port"},
	} {
		s := Spec{Name: "hello", Build: &Build{Context: "hello"}, Config: DefaultConfig()}
		c.change(&s)
		errs := ValidateSpec(s)
		switch {
		case c.says == "":
			if err := errs.Err(); err != nil {
				t.Errorf("%s: %v", c.what, err)
			}
		case len(errs) != 1 || errs[0].Field != c.field || !strings.Contains(errs[0].Msg, c.says):
			t.Errorf("%s: got %q, want one error at %q that says %q", c.what, errs, c.field, c.says)
		case !errdefs.IsInvalidArgument(errs.Err()):
			t.Errorf("%s: not an invalid argument", c.what)
		}
	}
}

func TestValidateSpecsTogether(t *testing.T) {
	spec := func(name string, port int, def bool) Spec {
		return Spec{Name: name, Image: "alpine", Config: DefaultConfig(), Port: port, Default: def}
	}
	got := ValidateSpecs([]Spec{spec("a", 9001, true), spec("b", 9001, true), spec("c", 0, false), spec("d", 0, false), spec("a", 1, false), {Name: "e"}})
	var fields []string
	for _, e := range got {
		fields = append(fields, e.Field)
	}
	want := []string{"functions.b.port", "functions.b.default", "functions.a", "functions.e", "functions.e.memory", "functions.e.tmp", "functions.e.timeout"}
	if diff := cmp.Diff(want, fields); diff != "" {
		t.Errorf("(-want +got):\n%s\n%v", diff, got)
	}
	if errs := ValidateSpecs(nil); len(errs) != 1 {
		t.Errorf("no functions: got %v", errs)
	}
}

func TestCheckEnvironmentSize(t *testing.T) {
	// {"AB":"…"} is nine bytes more than the value.
	env := map[string]string{"AB": strings.Repeat("<", MaxEnvironment-9)}
	if err := CheckEnvironmentSize(env); err != nil {
		t.Errorf("exactly 4 KB: %v", err)
	}
	env["AB"] += "<"
	var refused *AWSError
	err := CheckEnvironmentSize(env)
	if !errors.As(err, &refused) || refused.Type != typeInvalidParameter || !strings.HasSuffix(refused.Message, `4KB limit. String measured: {"AB":"`+env["AB"]+`"}`) {
		t.Errorf("got %v", err)
	}
}

func TestReservedEnv(t *testing.T) {
	if !slices.IsSorted(reservedEnv) {
		t.Error("the names are not sorted")
	}
	for _, name := range ReservedEnvNames() {
		if !ReservedEnv(name) {
			t.Errorf("%s is not reserved", name)
		}
	}
	for _, name := range []string{"", "PATH", "TZ", "AWS_LAMBDA_LOG_FORMAT", "AWS_LAMBDA_LOG_LEVEL", "AWS_XRAY_CONTEXT_MISSING", "AWS_XRAY_DAEMON_ADDRESS", "aws_region"} {
		if ReservedEnv(name) {
			t.Errorf("%s is reserved", name)
		}
	}
}

func fullImage() Image {
	return Image{
		Name: "h/p/f:v1", Digest: "sha256:1", DiffIDs: []string{"sha256:a", "sha256:b"}, Size: 7,
		Entrypoint: []string{"/e"}, Cmd: []string{"c"}, Env: []string{"A=1", "B=2"}, Workdir: "/w",
		BaseName: "base", BaseDigest: "sha256:2",
	}
}

func fullConfig() Config {
	return Config{
		MemoryMB: 128, TmpMB: 512, CPU: 0.5, Timeout: time.Second, Environment: map[string]string{"AB": "1"},
		Entrypoint: []string{"/e"}, Command: []string{"c"}, Workdir: "/w", Concurrency: Concurrency{Min: 1, Max: 2},
	}
}

// Every leaf of Config changes the identity, also one that is added tomorrow.
func TestIdentityCoversConfig(t *testing.T) {
	want := Identity(fullImage(), fullConfig())
	cfg := fullConfig()
	walkLeaves(t, reflect.ValueOf(&cfg).Elem(), "Config", func(path string) {
		if Identity(fullImage(), cfg) == want {
			t.Errorf("%s does not change the identity", path)
		}
	})
	if got := Identity(fullImage(), cfg); got != want {
		t.Error("the identity is not stable")
	}
}

func TestIdentityCoversWhatIsHonouredOfTheImage(t *testing.T) {
	volatile := map[string]bool{"Image.Name": true, "Image.Digest": true, "Image.Size": true, "Image.BaseName": true, "Image.BaseDigest": true, "Image.Context": true, "Image.Build": true}
	want := Identity(fullImage(), fullConfig())
	img := fullImage()
	walkLeaves(t, reflect.ValueOf(&img).Elem(), "Image", func(path string) {
		if changed := Identity(img, fullConfig()) != want; changed == volatile[path] {
			t.Errorf("%s: identity changed %v, want %v", path, changed, !volatile[path])
		}
	})
}

// walkLeaves changes every field below v in turn, calls changed, and changes it back.
func walkLeaves(t *testing.T, v reflect.Value, path string, changed func(path string)) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			walkLeaves(t, v.Field(i), path+"."+v.Type().Field(i).Name, changed)
		}
		return
	case reflect.Bool, reflect.Int, reflect.Int64, reflect.Float64, reflect.String, reflect.Slice, reflect.Map, reflect.Pointer:
	default:
		t.Fatalf("%s: teach this test about %s", path, v.Kind())
	}
	old := reflect.New(v.Type()).Elem()
	old.Set(v)
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(!v.Bool())
	case reflect.Int, reflect.Int64:
		v.SetInt(v.Int() + 1)
	case reflect.Float64:
		v.SetFloat(v.Float() + 1)
	case reflect.String:
		v.SetString(v.String() + "x")
	case reflect.Slice:
		v.Set(reflect.AppendSlice(reflect.MakeSlice(v.Type(), 0, 0), v))
		v.Set(reflect.Append(v, reflect.ValueOf("x")))
	case reflect.Map:
		m := reflect.MakeMap(v.Type())
		m.SetMapIndex(reflect.ValueOf("other"), reflect.ValueOf("x"))
		v.Set(m)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
	}
	changed(path)
	v.Set(old)
}

func TestIdentityTellsNeighboursApart(t *testing.T) {
	identity := func(change func(*Image, *Config)) string {
		img, cfg := fullImage(), fullConfig()
		change(&img, &cfg)
		return Identity(img, cfg)
	}
	seen := map[string]int{}
	for i, change := range []func(*Image, *Config){
		func(*Image, *Config) {},
		func(img *Image, _ *Config) { img.Entrypoint, img.Cmd = []string{"/e", "c"}, nil },
		func(img *Image, _ *Config) { img.Entrypoint, img.Cmd = nil, []string{"/e", "c"} },
		func(img *Image, _ *Config) { img.Env = []string{"A=1B=2"} },
		func(img *Image, _ *Config) { img.Env = []string{"B=2", "A=1"} },
		func(_ *Image, c *Config) { c.Command = nil },
		func(_ *Image, c *Config) { c.Command = []string{} },
		func(_ *Image, c *Config) { c.Environment = map[string]string{"A": "B1"} },
		func(_ *Image, c *Config) { c.Environment = map[string]string{"AB1": ""} },
	} {
		id := identity(change)
		if j, twice := seen[id]; twice {
			t.Errorf("changes %d and %d have one identity", i, j)
		}
		seen[id] = i
	}
	empty := identity(func(_ *Image, c *Config) { c.Environment = map[string]string{} })
	if none := identity(func(_ *Image, c *Config) { c.Environment = nil }); none != empty {
		t.Error("no variables and an empty map of them differ")
	}
}

// The store and the wire are JSON: what comes back must be the same version.
func TestIdentitySurvivesJSON(t *testing.T) {
	for _, cfg := range []Config{fullConfig(), DefaultConfig(), {Command: []string{}, Entrypoint: []string{}}} {
		data, err := json.Marshal(Version{Image: fullImage(), Config: cfg})
		if err != nil {
			t.Fatal(err)
		}
		var v Version
		if err := json.Unmarshal(data, &v); err != nil {
			t.Fatal(err)
		}
		if Identity(v.Image, v.Config) != Identity(fullImage(), cfg) {
			t.Errorf("%s: another identity", data)
		}
	}
}
