package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// script runs one file of testdata: a txtar archive whose comment is a list of commands and whose
// files fill the working directory. Its commands are
//
//	exec CMD…            run it; it must succeed
//	exits CODE CMD…      run it; it must exit so
//	stdout|stderr RE     what the last one printed matches; "! stdout ." is silence
//	cmp stdout|FILE FILE they are equal; -update rewrites the second one in the archive
//	stdin FILE           for the next exec
//	env NAME=VALUE, cd DIR
//	requested LINE       the daemon got this request
//	interrupt TIMES CODE MARKER CMD…   Ctrl-C after MARKER was printed
//	empty                nothing is deployed
//
// A "!" in front turns stdout, stderr and requested around. Words may be in single quotes, where two of them
// are one; outside $NAME is a variable of the script.
type script struct {
	t       *testing.T
	file    string
	archive archive
	fake    *fakeDaemon
	root    string // where the archive's files are
	dir     string // what cd changes
	env     map[string]string
	stdin   string
	stdout  string
	stderr  string
	changed bool // the archive has to be written
}

func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts in testdata: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			t.Parallel()
			newScript(t, file).run()
		})
	}
}

func newScript(t *testing.T, file string) *script {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	socketDir, err := os.MkdirTemp("", "lfx") // short: a socket's path has 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(socketDir) })
	fake, stop, err := startFake(socketDir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	s := &script{t: t, file: file, archive: parseArchive(string(data)), fake: fake, root: t.TempDir(), env: scriptEnv(fake)}
	s.dir = s.root
	for _, f := range s.archive.files {
		path := filepath.Join(s.root, f.name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(f.data), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func (s *script) run() {
	for n, line := range strings.Split(s.archive.comment, "\n") {
		words := s.words(line)
		if len(words) == 0 {
			continue
		}
		neg := words[0] == "!"
		if neg {
			words = words[1:]
		}
		if err := s.command(neg, words[0], words[1:]); err != nil {
			s.t.Fatalf("%s:%d: %s: %v\nstdout:\n%s\nstderr:\n%s", s.file, n+1, line, err, s.stdout, s.stderr)
		}
	}
	if s.changed {
		if err := os.WriteFile(s.file, []byte(s.archive.String()), 0o644); err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *script) command(neg bool, name string, args []string) error {
	switch name {
	case "exec":
		return s.exec(0, args)
	case "exits":
		code, err := strconv.Atoi(args[0])
		return errors.Join(err, s.exec(code, args[1:]))
	case "stdout":
		return match(neg, args[0], s.stdout)
	case "stderr":
		return match(neg, args[0], s.stderr)
	case "cmp":
		return s.compare(args[0], args[1])
	case "stdin":
		data, err := os.ReadFile(filepath.Join(s.dir, args[0]))
		s.stdin = string(data)
		return err
	case "env":
		key, value, _ := strings.Cut(args[0], "=")
		s.env[key] = value
	case "cd":
		s.dir = filepath.Join(s.dir, args[0])
	case "requested":
		return s.requested(neg, strings.Join(args, " "))
	case "interrupt":
		return s.interrupt(args[0], args[1], args[2], args[3:])
	case "empty":
		s.fake.empty.Store(true)
	default:
		return fmt.Errorf("unknown command %s", name)
	}
	return nil
}

// process is lfxctl, which TestMain runs when the test binary is called with lfxctlVariable set.
func (s *script) process(args []string) *exec.Cmd {
	if args[0] != "lfxctl" {
		s.t.Fatalf("%s is not lfxctl", args[0])
	}
	cmd := exec.CommandContext(s.t.Context(), os.Args[0], args[1:]...)
	cmd.Dir = s.dir
	// Under -race a process waits a second before it exits, unless told not to.
	cmd.Env = append(os.Environ(), lfxctlVariable+"=1", "GORACE=atexit_sleep_ms=0")
	for k, v := range s.env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	return cmd
}

func (s *script) exec(code int, args []string) error {
	var stdout, stderr bytes.Buffer
	cmd := s.process(args)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(s.stdin), &stdout, &stderr
	err := cmd.Run()
	s.stdin, s.stdout, s.stderr = "", stdout.String(), stderr.String()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		return err
	}
	if got := cmd.ProcessState.ExitCode(); got != code {
		return fmt.Errorf("exited %d, want %d", got, code)
	}
	return nil
}

func match(neg bool, pattern, text string) error {
	re, err := regexp.Compile("(?m)" + pattern)
	if err != nil {
		return err
	}
	if re.MatchString(text) == neg {
		return fmt.Errorf("match of %s: %t", pattern, !neg)
	}
	return nil
}

func (s *script) compare(got, want string) error {
	text := map[string]string{"stdout": s.stdout, "stderr": s.stderr}[got]
	if got != "stdout" && got != "stderr" {
		data, err := os.ReadFile(filepath.Join(s.dir, got))
		if err != nil {
			return err
		}
		text = string(data)
	}
	golden := s.archive.file(want)
	switch {
	case golden == nil:
		return fmt.Errorf("there is no file %s in the archive", want)
	case golden.data == text || golden.data == text+"\n":
		return nil
	case *update:
		golden.data, s.changed = text, true
		return nil
	}
	return fmt.Errorf("got:\n%s\nwant %s:\n%s", text, want, golden.data)
}

func (s *script) requested(neg bool, request string) error {
	s.fake.mu.Lock()
	defer s.fake.mu.Unlock()
	found := false
	for _, r := range s.fake.requests {
		found = found || r == request
	}
	if found == neg {
		return fmt.Errorf("the daemon got %q", s.fake.requests)
	}
	return nil
}

// words splits a line.
func (s *script) words(line string) []string {
	var out []string
	var word strings.Builder
	quoted, inWord := false, false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case c == '\'' && quoted && i+1 < len(line) && line[i+1] == '\'':
			word.WriteByte('\'')
			i++
		case c == '\'':
			quoted, inWord = !quoted, true
		case quoted:
			word.WriteByte(c)
		case c == ' ':
			if inWord {
				out = append(out, word.String())
			}
			word.Reset()
			inWord = false
		case c == '#' && !inWord:
			return out
		case c == '$':
			name := variable.FindString(line[i+1:])
			word.WriteString(s.env[name])
			i += len(name)
			inWord = true
		default:
			word.WriteByte(c)
			inWord = true
		}
	}
	if inWord {
		out = append(out, word.String())
	}
	return out
}

var variable = regexp.MustCompile(`^[A-Z_]*`)

// archive is a txtar archive.
type archive struct {
	comment string
	files   []archiveFile
}

type archiveFile struct{ name, data string }

var archiveHead = regexp.MustCompile(`^-- (\S+) --$`)

func parseArchive(text string) archive {
	var a archive
	into := &a.comment
	for line := range strings.Lines(text) {
		if head := archiveHead.FindStringSubmatch(strings.TrimSpace(line)); head != nil {
			a.files = append(a.files, archiveFile{name: head[1]})
			into = &a.files[len(a.files)-1].data
			continue
		}
		*into += line
	}
	return a
}

func (a *archive) file(name string) *archiveFile {
	for i := range a.files {
		if a.files[i].name == name {
			return &a.files[i]
		}
	}
	return nil
}

// String is the archive as a file.
func (a archive) String() string {
	out := a.comment
	for _, f := range a.files {
		out += "-- " + f.name + " --\n" + f.data
		if f.data != "" && !strings.HasSuffix(f.data, "\n") {
			out += "\n"
		}
	}
	return out
}
