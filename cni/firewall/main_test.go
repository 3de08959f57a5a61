package firewall

import (
	"testing"

	"lfx.dev/lfxd/cni/internal/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }
