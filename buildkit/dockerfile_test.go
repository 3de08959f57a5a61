package buildkit

import (
	"errors"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestCheckDockerfile(t *testing.T) {
	for name, tc := range map[string]struct {
		file  string
		opts  CheckOptions
		base  string
		bases []string
	}{
		"plain":         {file: "FROM public.ecr.aws/lambda/python:3.13\nCMD [\"a.b\"]\n", base: "public.ecr.aws/lambda/python:3.13", bases: []string{"public.ecr.aws/lambda/python:3.13"}},
		"syntax":        {file: "# syntax=docker/dockerfile:1\nFROM a\n", base: "a", bases: []string{"a"}},
		"syntax 1.7.0":  {file: "#syntax = docker.io/docker/dockerfile:1.7.0\nFROM a\n", base: "a", bases: []string{"a"}},
		"scratch":       {file: "FROM scratch\nCOPY a /\n"},
		"arg default":   {file: "ARG V=3.13\nARG I=lambda/python\nFROM public.ecr.aws/${I}:${V}\n", base: "public.ecr.aws/lambda/python:3.13", bases: []string{"public.ecr.aws/lambda/python:3.13"}},
		"arg given":     {file: "ARG V=3.13\nFROM a:$V\n", opts: CheckOptions{Args: map[string]string{"V": "3.12"}}, base: "a:3.12", bases: []string{"a:3.12"}},
		"arg fallback":  {file: "FROM a:${V:-9}\n", base: "a:9", bases: []string{"a:9"}},
		"arg of arg":    {file: "ARG A=x\nARG B=$A-y\nFROM a:$B\n", base: "a:x-y", bases: []string{"a:x-y"}},
		"platform arg":  {file: "FROM a:$TARGETARCH\n", opts: CheckOptions{Platform: &ocispec.Platform{OS: "linux", Architecture: "arm64"}}, base: "a:arm64", bases: []string{"a:arm64"}},
		"stages":        {file: "FROM b AS build\nRUN x\nFROM unused\nFROM a\nCOPY --from=build /x /x\n", base: "a", bases: []string{"b", "a"}},
		"chain":         {file: "FROM b AS One\nFROM one AS two\nFROM two\n", base: "b", bases: []string{"b"}},
		"number":        {file: "FROM b\nFROM a\nCOPY --from=0 /x /x\n", base: "a", bases: []string{"b", "a"}},
		"copy image":    {file: "FROM a\nCOPY --from=tools:1 /x /x\nRUN --mount=type=bind,from=other:2,target=/o true\n", base: "a", bases: []string{"a", "tools:1", "other:2"}},
		"target":        {file: "FROM a AS one\nFROM b AS two\n", opts: CheckOptions{Target: "ONE"}, base: "a", bases: []string{"a"}},
		"same name":     {file: "FROM golang AS golang\nFROM golang\n", base: "golang", bases: []string{"golang"}},
		"cache mount":   {file: "FROM a\nRUN --mount=type=cache,target=/c --network=none --security=sandbox true\n", base: "a", bases: []string{"a"}},
		"add local":     {file: "FROM a\nADD a.tar ./github.com/x /d/\n", base: "a", bases: []string{"a"}},
		"add allowed":   {file: "FROM a\nADD https://example.com/x /d/\n", opts: CheckOptions{AllowRemote: true}, base: "a", bases: []string{"a"}},
		"heredoc":       {file: "FROM a\nRUN <<EOF\n--security=insecure\nEOF\nCOPY <<X /x\nADD http://x\nX\n", base: "a", bases: []string{"a"}},
		"comment lines": {file: "FROM a\n# RUN --security=insecure x\n", base: "a", bases: []string{"a"}},
	} {
		t.Run(name, func(t *testing.T) {
			df, err := CheckDockerfile([]byte(tc.file), tc.opts)
			if err != nil {
				t.Fatal(err)
			}
			if df.Base != tc.base || !cmp.Equal(df.Bases, tc.bases) {
				t.Errorf("Base %q of %q, want %q of %q", df.Base, df.Bases, tc.base, tc.bases)
			}
		})
	}
}

func TestCheckDockerfileRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		file string
		opts CheckOptions
		want string
	}{
		"frontend":        {file: "# syntax=evil/frontend:1\nFROM a\n", want: `Dockerfile:1: the frontend "evil/frontend:1" is not allowed`},
		"frontend digest": {file: "# syntax=docker/dockerfile:1@sha256:" + strings.Repeat("a", 64) + "\nFROM a\n", want: "Dockerfile:1: the frontend"},
		"frontend labs":   {file: "#!/x\n# syntax=docker/dockerfile:1-labs\nFROM a\n", want: "Dockerfile:2: the frontend"},
		"slashes":         {file: "// syntax=evil\nFROM a\n", want: "Dockerfile:1: the frontend"},
		"syntax arg":      {file: "FROM a\n", opts: CheckOptions{Args: map[string]string{"BUILDKIT_SYNTAX": "evil"}}, want: "Dockerfile: the build argument BUILDKIT_SYNTAX is not allowed"},
		"arg name":        {file: "FROM a\n", opts: CheckOptions{Args: map[string]string{"a=b": "c"}}, want: "is no name for a build argument"},
		"security":        {file: "FROM a\nRUN --security=insecure x\n", opts: CheckOptions{Name: "f/Dockerfile"}, want: "f/Dockerfile:2: RUN --security=insecure is not allowed"},
		"network":         {file: "FROM a\n\nRUN \\\n  --network=host x\n", want: "Dockerfile:3: RUN --network=host is not allowed"},
		"device":          {file: "FROM a\nRUN --device=vendor.com/class=x x\n", want: "Dockerfile:2: RUN --device is not allowed"},
		"secret":          {file: "FROM a\nRUN --mount=type=secret,id=x x\n", want: "Dockerfile:2: RUN --mount=type=secret is not allowed"},
		"ssh":             {file: "FROM a\nRUN --mount=TYPE=SSH x\n", want: "Dockerfile:2: RUN --mount=type=SSH is not allowed"},
		"mount variable":  {file: "FROM a\nARG T=secret\nRUN --mount=type=$T,id=x x\n", want: "Dockerfile:3: RUN --mount=type=$T is not allowed"},
		"onbuild":         {file: "FROM a\nONBUILD RUN --security=insecure x\n", want: "Dockerfile:2: RUN --security=insecure is not allowed"},
		"add url":         {file: "FROM a\nADD http://169.254.169.254/x /x\n", want: "Dockerfile:2: ADD http://169.254.169.254/x is not allowed"},
		"add git":         {file: "FROM a\nADD git@github.com:x/y.git#main:../.. /x\n", want: "Dockerfile:2: ADD git@github.com:x/y.git#main:../.. is not allowed"},
		"add json":        {file: "FROM a\nADD [\"https://x/y\", \"/x\"]\n", want: "Dockerfile:2: ADD https://x/y is not allowed"},
		"empty":           {file: "", want: "Dockerfile: "},
		"no from":         {file: "ARG A=b\n", want: "no FROM"},
		"unknown":         {file: "FROM a\n\nFRUM b\n", want: "Dockerfile:3: unknown instruction: FRUM"},
		"bad json":        {file: "FROM a\nVOLUME [\n", want: ""},
		"unset arg":       {file: "FROM $IMAGE\n", want: "IMAGE has no value"},
		"bad name":        {file: "FROM x/UPPER\n", want: "Dockerfile:1: FROM x/UPPER names no image"},
		"target":          {file: "FROM a AS b\n", opts: CheckOptions{Target: "c"}, want: `there is no stage "c"`},
		"large":           {file: strings.Repeat("#\n", maxDockerfile), want: "larger than"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := CheckDockerfile([]byte(tc.file), tc.opts)
			if tc.want == "" {
				return
			}
			var de *DockerfileError
			if !errors.As(err, &de) || !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("CheckDockerfile = %v, want %q", err, tc.want)
			}
		})
	}
	_, err := CheckDockerfile([]byte("# syntax=evil\nFROM a\nRUN --device=x y\nADD http://x /x\n"), CheckOptions{})
	if got := strings.Count(err.Error(), "\n") + 1; got != 3 {
		t.Errorf("%d errors at once, want 3: %v", got, err)
	}
}

func FuzzCheckDockerfile(f *testing.F) {
	for _, seed := range []string{
		"FROM a\n", "# syntax=docker/dockerfile:1\nARG V=1\nFROM a:$V AS b\nRUN --mount=type=cache,target=/x y\nFROM b\nCOPY --from=0 / /\n",
		"FROM a\nONBUILD ADD http://x /\n", "# escape=`\nFROM a\nRUN x `\n y\n", "FROM a\nRUN <<A <<B\nA\nB\n", "FROM ${A:-${B}}\n", "{\"syntax\": \"x\"}", "FROM a\nHEALTHCHECK --x\n",
	} {
		f.Add([]byte(seed), "V", "1", "b")
	}
	f.Fuzz(func(t *testing.T, file []byte, name, value, target string) {
		df, err := CheckDockerfile(file, CheckOptions{Args: map[string]string{name: value}, Target: target})
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Fatalf("class of %v", err)
			}
			return
		}
		if df.Syntax != "" && !allowedSyntax.MatchString(df.Syntax) {
			t.Errorf("syntax %q passed", df.Syntax)
		}
		for _, ref := range df.Bases {
			if _, err := reference.ParseNormalizedNamed(ref); err != nil {
				t.Errorf("base %q: %v", ref, err)
			}
		}
	})
}
