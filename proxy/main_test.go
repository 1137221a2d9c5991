package proxy_test

import (
	"testing"

	"go.uber.org/goleak"
)

// H17: after all that is done to it here, the data plane has left no goroutine behind.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
