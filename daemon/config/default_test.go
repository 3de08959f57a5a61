package config

import (
	"fmt"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// defaultPath is the file that packages install as /etc/lfxd/config.toml.
const defaultPath = "../../contrib/systemd/config.toml"

// TestDefaultFile holds the installed file against the fields: every key, commented out, with its default.
func TestDefaultFile(t *testing.T) {
	want := defaultFile(t)
	if *update {
		if err := os.WriteFile(defaultPath, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(defaultPath)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Fatalf("run go test ./daemon/config -update (-want +got):\n%s", diff)
	}
	for name, text := range map[string]string{"as installed": want, "with every key": key.ReplaceAllString(want, "$1")} {
		c, err := Parse(name, []byte(text))
		if err == nil {
			err = c.Validate()
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(Default(), c); diff != "" {
			t.Errorf("%s is not the default (-want +got):\n%s", name, diff)
		}
	}
}

// key matches a key that is commented out.
var key = regexp.MustCompile(`(?m)^#([a-z_]+ = )`)

func defaultFile(t *testing.T) string {
	comments := fieldComments(t)
	var b strings.Builder
	b.WriteString("# Configuration of lfxd. Every key is here with its default; a change needs `systemctl restart lfxd`, and\n" +
		"# `lfxd check` says what is wrong with it.\n")
	keys := func(v reflect.Value) {
		for i := range v.NumField() {
			f := v.Type().Field(i)
			if isSection(f.Type) || f.Type.Kind() == reflect.Map {
				continue
			}
			fmt.Fprintf(&b, "\n%s#%s = %s\n", wrapped(comments[v.Type().Name()+"."+f.Name]), f.Tag.Get("toml"), literal(v.Field(i)))
		}
	}
	v := reflect.ValueOf(*Default())
	keys(v)
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if isSection(f.Type) {
			fmt.Fprintf(&b, "\n[%s]\n", f.Tag.Get("toml"))
			keys(v.Field(i))
		}
	}
	fmt.Fprintf(&b, "\n%s[base_images]\n#\"public.ecr.aws/lambda/python:3.13\" = \"registry.example.com/mirror/lambda-python:3.13\"\n", wrapped(comments["Config.BaseImages"]))
	return b.String()
}

// wrapped makes a comment of lines of at most 100 characters.
func wrapped(text string) string {
	var b strings.Builder
	line := "#"
	for word := range strings.FieldsSeq(strings.ReplaceAll(text, `\|`, "|")) {
		if len(line)+1+len(word) > 100 {
			b.WriteString(line + "\n")
			line = "#"
		}
		line += " " + word
	}
	return b.String() + line + "\n"
}
