package pool

import (
	"testing"

	"lfx.dev/lfxd/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }
