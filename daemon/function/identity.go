package function

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash"
	"maps"
	"math"
	"slices"
)

// Identity returns the identity of a version as "sha256:…": two deploys with the same identity are
// the same version. It covers what decides how an instance behaves: the layers' diff ids, the
// members of the image config that are honoured and the function's configuration. It leaves out
// what differs from build to build or only says where the image came from: Name, Digest, Size,
// BaseName, BaseDigest, Context, Build, and with the digest labels, annotations and times.
//
// Absent and empty lists are the same for the image, where both mean nothing, and differ for
// Config.Entrypoint and Config.Command, where empty replaces the image's value.
func Identity(img Image, cfg Config) string {
	h := identityHash{sha256.New()}
	h.text("lfx version identity 1")
	h.list(img.DiffIDs)
	h.list(img.Entrypoint)
	h.list(img.Cmd)
	h.list(img.Env)
	h.text(img.Workdir)

	h.number(uint64(cfg.MemoryMB))
	h.number(uint64(cfg.TmpMB))
	h.number(math.Float64bits(cfg.CPU))
	h.number(uint64(cfg.Timeout))
	h.number(uint64(len(cfg.Environment)))
	for _, name := range slices.Sorted(maps.Keys(cfg.Environment)) {
		h.text(name)
		h.text(cfg.Environment[name])
	}
	h.override(cfg.Entrypoint)
	h.override(cfg.Command)
	h.text(cfg.Workdir)
	h.number(uint64(cfg.Concurrency.Min))
	h.number(uint64(cfg.Concurrency.Max))
	if cfg.Concurrency.Stopped { // only then, so that earlier versions keep their identity
		h.text("stopped")
	}
	if n := cfg.Concurrency.PerInstance; n != 0 { // likewise
		h.text("per instance")
		h.number(uint64(n))
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}

// identityHash writes values so that no two sequences of values read alike: each string and list
// comes after its length.
type identityHash struct{ hash.Hash }

func (h identityHash) number(n uint64) {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], n)
	h.Write(b[:]) // a hash never fails
}

func (h identityHash) text(s string) {
	h.number(uint64(len(s)))
	h.Write([]byte(s))
}

func (h identityHash) list(l []string) {
	h.number(uint64(len(l)))
	for _, s := range l {
		h.text(s)
	}
}

// override writes a list whose absence (nil) means something else than its emptiness.
func (h identityHash) override(l []string) {
	if l == nil {
		h.number(0)
		return
	}
	h.number(1)
	h.list(l)
}
