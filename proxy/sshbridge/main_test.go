package sshbridge

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if os.Getenv(asSSHD) != "" {
		os.Exit(actAsSSHD(os.Args[1:]))
	}
	goleak.VerifyTestMain(m)
}
