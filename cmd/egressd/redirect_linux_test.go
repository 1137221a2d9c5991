package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/egressd/egressd/internal/testbed"
)

// TestRedirectCommands takes the rules through their life on a router of its own.
func TestRedirectCommands(t *testing.T) {
	router := testbed.NewNet(t).Router
	run := func(want int, args ...string) (stdout, stderr string) {
		t.Helper()
		var out, errs bytes.Buffer
		code := -1
		router.Do(t, func() {
			code = Run(context.Background(), append([]string{"redirect"}, args...), strings.NewReader(""), &out, &errs, nil)
		})
		if code != want {
			t.Fatalf("%v: exit code %d, want %d; %s%s", args, code, want, &out, &errs)
		}
		return out.String(), errs.String()
	}
	flags := func(command string, more ...string) []string {
		return append([]string{command, "--mode", "tproxy", "--port", "15002", "--dns-port", "5353", "--interface", "sandbox*"}, more...)
	}
	tables := func() string {
		out, err := router.Command(t, "nft", "list", "ruleset").Output()
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}

	out, errs := run(exitCheck, flags("status")...)
	if out != "table inet egressd is not installed\nIPv4: the policy rule for mark 0xe9d is missing\nIPv4: the local route in table 3741 is missing\n"+
		"IPv6: the policy rule for mark 0xe9d is missing\nIPv6: the local route in table 3741 is missing\n" {
		t.Errorf("status before: %s", out)
	}
	if errs != "egressd: the rules are not those that are asked for: `egressd redirect install` with the same flags puts them in force\n" {
		t.Errorf("status before: %s", errs)
	}
	const does = "installed: TCP on sandbox* goes to port 15002 (tproxy), DNS goes to port 5353\n"
	for range 2 {
		if out, _ := run(exitOK, flags("install")...); out != does {
			t.Errorf("install: %s", out)
		}
		if out, _ := run(exitOK, flags("status")...); out != does {
			t.Errorf("status: %s", out)
		}
	}
	if !strings.Contains(tables(), "table inet egressd {") {
		t.Error("no table")
	}
	out, _ = run(exitCheck, flags("status", "--dns-port", "5354", "--json")...)
	var answer struct {
		Success bool
		Data    struct {
			Installed   bool
			Differences []string
		}
	}
	if err := json.Unmarshal([]byte(out), &answer); err != nil || !answer.Success || answer.Data.Installed || len(answer.Data.Differences) != 2 {
		t.Errorf("status for another port: %s, %v", out, err)
	}
	for range 2 {
		if out, _ := run(exitOK, "remove"); out != "removed\n" {
			t.Errorf("remove: %s", out)
		}
	}
	if left := tables(); left != "" {
		t.Errorf("left behind: %s", left)
	}
}

// TestRedirectWithoutPrivilege: the message says what is missing.
func TestRedirectWithoutPrivilege(t *testing.T) {
	router := testbed.NewNet(t).Router
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	egressd := filepath.Join(t.TempDir(), "egressd") // by this name the test is the program
	if err := os.Symlink(self, egressd); err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{"install", "status", "remove"} {
		args := []string{"--bounding-set=-net_admin", "--inh-caps=-net_admin", egressd, "redirect", command}
		if command != "remove" {
			args = append(args, "--port", "15001", "--interface", "sandbox0")
		}
		out, err := router.Command(t, "setpriv", args...).CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != exitNetwork || !strings.HasPrefix(string(out), "egressd: netfilter rules need CAP_NET_ADMIN in this network namespace: run it as root") {
			t.Errorf("%s: %v: %s", command, err, out)
		}
	}
}
