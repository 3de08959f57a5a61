package lfxinit

import (
	"strconv"
	"strings"
	"syscall"
)

// maxPasswd is how much of /etc/passwd is read, in bytes.
const maxPasswd = 1 << 20

// prepareEnv does to the environment of a Command what runc does to that of a container (libcontainer, prepareEnv): of several values
// of a name the last one stays, and HOME is that of uid in passwd when it is not set, or empty.
func prepareEnv(env []string, passwd string, uid int) []string {
	last := make(map[string]int, len(env))
	for i, kv := range env {
		name, _, _ := strings.Cut(kv, "=")
		last[name] = i
	}
	out := make([]string, 0, len(env)+1)
	home := false
	for i, kv := range env {
		name, value, _ := strings.Cut(kv, "=")
		if last[name] != i || name == "HOME" && value == "" {
			continue
		}
		home = home || name == "HOME"
		out = append(out, kv)
	}
	if !home {
		out = append(out, "HOME="+homeOf(passwd, uid))
	}
	return out
}

// homeOf returns the home directory of the first user with that uid; "/" without any.
func homeOf(passwd string, uid int) string {
	for line := range strings.SplitSeq(readRegular(passwd), "\n") {
		if f := strings.Split(line, ":"); len(f) >= 6 && f[2] == strconv.Itoa(uid) {
			return f[5]
		}
	}
	return "/"
}

// readRegular returns the beginning of a regular file, nothing of what is none. It does not block.
func readRegular(path string) string {
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer syscall.Close(fd)
	var st syscall.Stat_t
	if syscall.Fstat(fd, &st) != nil || st.Mode&syscall.S_IFMT != syscall.S_IFREG {
		return ""
	}
	b := make([]byte, min(st.Size, maxPasswd))
	n := 0
	for n < len(b) {
		m, err := syscall.Read(fd, b[n:])
		if err == syscall.EINTR {
			continue
		}
		if err != nil || m == 0 {
			break
		}
		n += m
	}
	return string(b[:n])
}
