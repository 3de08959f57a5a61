package cni

import (
	"encoding/binary"
	"net"
	"net/netip"
)

// The probe writes its frames itself, because what it must try is what a socket would not send.

var broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// ethernet puts a header before payload, of EtherType kind.
func ethernet(src, dst net.HardwareAddr, kind uint16, payload []byte) []byte {
	frame := append(append([]byte{}, dst...), src...)
	frame = binary.BigEndian.AppendUint16(frame, kind)
	return append(frame, payload...)
}

// udpPacket is an IPv4 packet with a UDP datagram; its UDP checksum is zero, which means none.
func udpPacket(from netip.Addr, to netip.AddrPort, payload []byte) []byte {
	const ipHeader, udpHeader, ttl, protocolUDP = 20, 8, 64, 17
	total := ipHeader + udpHeader + len(payload)
	p := make([]byte, total)
	p[0] = 0x45
	binary.BigEndian.PutUint16(p[2:], uint16(total))
	p[8], p[9] = ttl, protocolUDP
	src, dst := from.As4(), to.Addr().As4()
	copy(p[12:], src[:])
	copy(p[16:], dst[:])
	binary.BigEndian.PutUint16(p[10:], checksum(p[:ipHeader]))
	binary.BigEndian.PutUint16(p[20:], 40000)
	binary.BigEndian.PutUint16(p[22:], to.Port())
	binary.BigEndian.PutUint16(p[24:], uint16(udpHeader+len(payload)))
	copy(p[28:], payload)
	return p
}

// checksum is the internet checksum of an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// arpReply claims that ip is at mac.
func arpReply(mac net.HardwareAddr, ip netip.Addr, targetMAC net.HardwareAddr, target netip.Addr) []byte {
	p := []byte{0, 1, 8, 0, 6, 4, 0, 2}
	sender, receiver := ip.As4(), target.As4()
	p = append(append(p, mac...), sender[:]...)
	return append(append(p, targetMAC...), receiver[:]...)
}
