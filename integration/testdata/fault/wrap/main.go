// Command wrap stands in for an OCI runtime or a CNI plugin in the fault tests: it runs the program
// of the same name with ".real" after it, and does what the file of the same name with ".faults" says
// for the command at hand (runc's first argument without flags, or CNI_COMMAND):
//
//	ADD    error no way        # fail as the protocol has it, without running the program
//	ADD    delay 3s            # wait first
//	ADD    garbage             # run it, print something else
//	ADD    die                 # run it, then die by SIGKILL
//	create die-before          # die by SIGKILL at once
//	create kill 1234           # SIGKILL that process, then run it
//	create kill-after 1234     # run it, then SIGKILL that process
//	create kill-parent         # SIGKILL our parent (the shim), then run it
//	create hang                # never end
//	DEL    5*error no way      # only that many times
package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	self, err := os.Executable()
	if err != nil {
		fail("%v", err)
	}
	action, argument := fault(self+".faults", command())
	switch action {
	case "":
		run(self)
	case "error":
		fail("%s", argument)
	case "delay":
		d, err := time.ParseDuration(argument)
		if err != nil {
			fail("%v", err)
		}
		time.Sleep(d)
		run(self)
	case "garbage":
		child(self, nil)
		fmt.Print("{\"cniVersion\": 7, <html>")
	case "die":
		child(self, os.Stdout)
		kill(os.Getpid())
	case "die-before":
		kill(os.Getpid())
	case "kill":
		kill(number(argument))
		run(self)
	case "kill-after":
		child(self, os.Stdout)
		kill(number(argument))
	case "kill-parent":
		kill(os.Getppid())
		run(self)
	case "hang":
		select {}
	}
}

// command is what we are asked to do.
func command() string {
	if c := os.Getenv("CNI_COMMAND"); c != "" {
		return c
	}
	for _, a := range os.Args[1:] {
		switch a {
		case "create", "start", "kill", "delete", "state", "run", "exec":
			return a
		}
	}
	return ""
}

// fault finds the first line for the command that has not acted often enough, and counts.
func fault(path, command string) (action, argument string) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return "", ""
	}
	defer f.Close() //nolint:errcheck // releases the lock
	if syscall.Flock(int(f.Fd()), syscall.LOCK_EX) != nil {
		return "", ""
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return "", ""
	}
	lines := strings.Split(string(data), "\n")
	for i, line := range lines {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != command {
			continue
		}
		action, argument = fields[1], strings.Join(fields[2:], " ")
		if count, rest, ok := strings.Cut(action, "*"); ok {
			left := number(count)
			if left == 0 {
				continue
			}
			lines[i] = fmt.Sprintf("%s %d*%s %s", command, left-1, rest, argument)
			if f.Truncate(0) == nil {
				f.WriteAt([]byte(strings.Join(lines, "\n")), 0) //nolint:errcheck // the test sees it
			}
			action = rest
		}
		return action, argument
	}
	return "", ""
}

// run becomes the real program.
func run(self string) {
	err := syscall.Exec(self+".real", append([]string{self + ".real"}, os.Args[1:]...), os.Environ())
	fail("%v", err)
}

// child runs the real program with its output to out, and drops how it ended.
func child(self string, out *os.File) {
	cmd := exec.Command(self+".real", os.Args[1:]...)
	cmd.Stdin, cmd.Stderr = os.Stdin, os.Stderr
	if out != nil {
		cmd.Stdout = out
	} else {
		cmd.Stdout = &bytes.Buffer{}
	}
	_ = cmd.Run()
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		fail("%v", err)
	}
	return n
}

func kill(pid int) { _ = syscall.Kill(pid, syscall.SIGKILL) }

// fail ends as CNI and runc expect it.
func fail(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if os.Getenv("CNI_COMMAND") != "" {
		fmt.Printf("{\"cniVersion\": \"1.1.0\", \"code\": 999, \"msg\": %q}", text)
	} else {
		fmt.Fprintln(os.Stderr, text)
	}
	os.Exit(1)
}
