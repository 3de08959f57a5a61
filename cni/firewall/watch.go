package firewall

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

const nfGroupTables = 7 // NFNLGRP_NFTABLES

// Watch calls changed whenever somebody adds or removes tables, chains, sets or rules that may be
// ours, until ctx ends; then it returns nil. changed runs on Watch's goroutine. Elements of sets
// are not reported: we change them ourselves all the time, and Check sees a foreign change. Events
// are hints: when the kernel drops some, changed is called as well.
func (f *Firewall) Watch(ctx context.Context, changed func()) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("watch nftables: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (nfGroupTables - 1)}); err != nil {
		unix.Close(fd)
		return fmt.Errorf("watch nftables: %w", err)
	}
	sock := os.NewFile(uintptr(fd), "nftables events")
	var once sync.Once
	closeSock := func() { once.Do(func() { sock.Close() }) }
	defer closeSock()
	defer context.AfterFunc(ctx, closeSock)()

	buf := make([]byte, 1<<16)
	for {
		n, err := sock.Read(buf)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			changed()
		case err != nil:
			return fmt.Errorf("watch nftables: %w", err)
		case f.concerns(buf[:n]):
			changed()
		}
	}
}

// concerns reports whether a batch of events may touch our tables. It errs on the side of yes.
func (f *Firewall) concerns(batch []byte) bool {
	const header, family = unix.NLMSG_HDRLEN, 4
	for len(batch) >= header {
		size := int(binary.NativeEndian.Uint32(batch))
		if size < header || size > len(batch) {
			return true
		}
		kind := binary.NativeEndian.Uint16(batch[4:])
		body := batch[header:size]
		if kind>>8 == unix.NFNL_SUBSYS_NFTABLES && structural(kind&0xff) && len(body) >= family && f.names(body[family:]) {
			return true
		}
		batch = batch[min(len(batch), (size+3)&^3):]
	}
	return false
}

// structural are the messages that change more than elements of sets.
func structural(kind uint16) bool {
	switch kind {
	case unix.NFT_MSG_NEWTABLE, unix.NFT_MSG_DELTABLE, unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN,
		unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE, unix.NFT_MSG_NEWSET, unix.NFT_MSG_DELSET:
		return true
	}
	return false
}

// names reports whether the first attribute, the table's name in all structural messages, is ours.
func (f *Firewall) names(attrs []byte) bool {
	if len(attrs) < 4 {
		return true
	}
	size := int(binary.NativeEndian.Uint16(attrs))
	if size < 4 || size > len(attrs) || binary.NativeEndian.Uint16(attrs[2:])&0x3fff != 1 {
		return true
	}
	return string(attrs[4:size]) == f.rules.Table+"\x00"
}
