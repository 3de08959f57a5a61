package lfxinit

import (
	"os"
	"os/signal"
	"strings"
	"syscall"
)

// defaultPath is searched when the container's environment has no PATH, as shells do.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Exit codes of lfx-init itself, as shells use them.
const (
	codeSetup    = 125 // a FIFO could not be opened, or the arguments are wrong
	codeNoExec   = 126
	codeNotFound = 127
)

// Main runs lfx-init and returns its exit code. args are the program's: the path of lfx-init, the runtime's working
// directory, and the runtime's argv. Main blocks until the runtime has ended.
func Main(args, env []string) int {
	if len(args) < 3 {
		return codeSetup
	}
	// Nobody in the instance may attach to PID 1 or read its memory; an exec resets this for the runtime.
	_, _, _ = syscall.RawSyscall(syscall.SYS_PRCTL, syscall.PR_SET_DUMPABLE, 0, 0)
	return run(dirOf(args[0]), args[1], args[2:], env)
}

func run(dir, workdir string, argv, env []string) int {
	control, err := syscall.Open(dir+"/"+ControlName, syscall.O_WRONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return codeSetup
	}
	stdout, err := openLog(dir + "/" + StdoutName)
	if err != nil {
		return fail(control, ClassTaskConfig, err)
	}
	stderr, err := openLog(dir + "/" + StderrName)
	if err != nil {
		return fail(control, ClassTaskConfig, err)
	}
	signals := make(chan os.Signal, 32)
	signal.Notify(signals)
	c, ok := passGate(dir + "/" + GateName)
	if !ok {
		return codeSetup
	}
	if c != nil {
		workdir, argv, env = c.Dir, c.Args, prepareEnv(c.Env, "/etc/passwd", syscall.Getuid())
	}

	pid, class, err := start(workdir, argv, env, stdout, stderr)
	if err != nil {
		return fail(control, class, err)
	}
	report(control, Record{Kind: Started, Value: int32(pid)})
	// Ends with the process.
	go forward(signals, pid)
	status := reap(pid)
	code := reportStatus(control, status)
	// Everything else in the PID namespace goes with PID 1; doing it here first lets the kernel begin before
	// this process has been torn down.
	_ = syscall.Kill(-1, syscall.SIGKILL)
	return code
}

// passGate waits for the word of the daemon. Nothing of the image has run before it. ok is false when there
// will be none, because the daemon is gone.
func passGate(path string) (c *Command, ok bool) {
	gate, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, false
	}
	defer syscall.Close(gate)
	return readWord(func(b []byte) (int, error) { return syscall.Read(gate, b) })
}

// openLog opens a log FIFO for the runtime. First both ends are opened and kept (see the package comment),
// so opening the write end does not wait for a reader.
func openLog(path string) (int, error) {
	if _, err := syscall.Open(path, syscall.O_RDWR|syscall.O_CLOEXEC, 0); err != nil {
		return -1, err
	}
	return syscall.Open(path, syscall.O_WRONLY|syscall.O_CLOEXEC, 0)
}

// start starts the runtime and closes init's own descriptors of stdout and stderr.
func start(workdir string, argv, env []string, stdout, stderr int) (pid int, class Class, err error) {
	if err := syscall.Chdir(workdir); err != nil {
		return 0, ClassWorkingDir, err
	}
	path, err := lookPath(argv[0], env)
	if err != nil {
		return 0, classOf(err), err
	}
	pid, err = syscall.ForkExec(path, argv, &syscall.ProcAttr{
		Env:   env,
		Files: []uintptr{0, uintptr(stdout), uintptr(stderr)},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	_ = syscall.Close(stdout)
	_ = syscall.Close(stderr)
	if err != nil {
		return 0, classOf(err), err
	}
	return pid, ClassNone, nil
}

// lookPath finds the file to execute. A name with a slash is taken as it is (relative to the working directory); other names
// are searched in the PATH of env. The error is a syscall.Errno: EACCES when only files that may not be executed
// were found, else ENOENT.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	if name == "" {
		return "", syscall.ENOENT
	}
	var found error = syscall.ENOENT
	for dir := range strings.SplitSeq(pathOf(env), ":") {
		if dir == "" {
			dir = "."
		}
		path := dir + "/" + name
		var st syscall.Stat_t
		if syscall.Stat(path, &st) != nil || st.Mode&syscall.S_IFMT != syscall.S_IFREG {
			continue
		}
		if syscall.Access(path, 1) == nil {
			return path, nil
		}
		found = syscall.EACCES
	}
	return "", found
}

// pathOf returns the last PATH of env, for that is the one a C program sees after setenv; without any,
// the usual directories.
func pathOf(env []string) string {
	path := defaultPath
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok && v != "" {
			path = v
		}
	}
	return path
}

func classOf(err error) Class {
	switch err {
	case syscall.ENOENT, syscall.ENOTDIR, syscall.ELOOP, syscall.ENAMETOOLONG:
		return ClassEntrypointMissing
	case syscall.EACCES, syscall.EISDIR, syscall.EPERM:
		return ClassEntrypointNotExecutable
	case syscall.ENOEXEC, syscall.ELIBBAD, syscall.EINVAL:
		return ClassExecFormat
	}
	return ClassTaskConfig
}

// forward hands signals on to the runtime. What only concerns this process (children, pipes, the Go
// scheduler's own) and faults stay here.
func forward(signals <-chan os.Signal, pid int) {
	for s := range signals {
		sig := s.(syscall.Signal)
		switch sig {
		case syscall.SIGCHLD, syscall.SIGURG, syscall.SIGPIPE,
			syscall.SIGSEGV, syscall.SIGBUS, syscall.SIGFPE, syscall.SIGILL, syscall.SIGTRAP:
			continue
		}
		_ = syscall.Kill(pid, sig)
	}
}

// reap waits for children until the runtime itself has ended, and returns its status. Orphans of the runtime become children of PID 1
// and are reaped on the way.
func reap(pid int) syscall.WaitStatus {
	for {
		var status syscall.WaitStatus
		got, err := syscall.Wait4(-1, &status, 0, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return 0 // ECHILD: cannot happen while the runtime has not been waited for
		}
		if got == pid && (status.Exited() || status.Signaled()) {
			return status
		}
	}
}

func reportStatus(control int, status syscall.WaitStatus) int {
	if status.Signaled() {
		report(control, Record{Kind: Signaled, Value: int32(status.Signal())})
		return 128 + int(status.Signal())
	}
	report(control, Record{Kind: Exited, Value: int32(status.ExitStatus())})
	return status.ExitStatus()
}

func fail(control int, class Class, err error) int {
	errno, _ := err.(syscall.Errno)
	report(control, Record{Kind: ExecFailed, Class: class, Value: int32(errno)})
	if class == ClassEntrypointMissing {
		return codeNotFound
	}
	return codeNoExec
}

// report writes a record. It does not block and ignores errors: when nobody reads, nobody cares.
func report(control int, r Record) {
	var b [RecordSize]byte
	for {
		_, err := syscall.Write(control, r.Append(b[:0]))
		if err != syscall.EINTR {
			return
		}
	}
}

func dirOf(path string) string {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i]
	}
	return "."
}
