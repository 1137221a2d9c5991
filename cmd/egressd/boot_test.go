package main

import (
	"errors"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
)

// A write to the store that makes a source unfit for its binding cannot keep the daemon
// down: it starts, says so, and refuses the requests that the source is bound to.
func TestBootWithSourceThatDoesNotFitItsBinding(t *testing.T) {
	d := startDaemon(t, "")
	d.cli(t, bearer, "source", "add", "api")
	c := d.client(t)
	if r := get(c, d.origin.URL("/bearer")); r.status != http.StatusOK {
		t.Fatalf("%+v", r)
	}
	d.cli(t, "", "source", "set", "api", "--allowed-destination", "elsewhere.test")
	if r := get(c, d.origin.URL("/bearer")); r.status != http.StatusForbidden {
		t.Errorf("after the bound was narrowed: %+v", r)
	}
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-d.done

	again := egressd(d.cmd.Args[1:]...)
	again.Dir, again.Env = d.dir, d.cmd.Env
	log, err := os.CreateTemp(t.TempDir(), "log")
	if err != nil {
		t.Fatal(err)
	}
	again.Stderr = log
	if err := again.Start(); err != nil {
		t.Fatal(err)
	}
	d.done = make(chan struct{})
	defer func() {
		close(d.done) // of the first one, whose cleanup waits for it
		if err := errors.Join(again.Process.Kill(), again.Wait()); err != nil && !strings.Contains(err.Error(), "killed") {
			t.Error(err)
		}
	}()
	d.waitStatus(t, http.StatusOK)
	text, err := os.ReadFile(log.Name())
	if err != nil || !strings.Contains(string(text), "does not fit its binding") {
		t.Errorf("the log does not say so: %s %v", text, err)
	}
	c.CloseIdleConnections()
	if r := get(c, d.origin.URL("/bearer")); r.status != http.StatusForbidden {
		t.Errorf("after the restart: %+v", r)
	}
}

// What the API says of a source's use comes from the data plane.
func TestUseOfASourceIsTold(t *testing.T) {
	d := startDaemon(t, "")
	d.cli(t, bearer, "source", "add", "api")
	const used, resolved = `"lastUsedAt":null`, `"lastResolvedAt":null`
	before := strings.ReplaceAll(d.cli(t, "", "source", "get", "api", "--json"), ": ", ":")
	if !strings.Contains(before, used) || !strings.Contains(before, resolved) {
		t.Errorf("before its first use: %s", before)
	}
	if r := get(d.client(t), d.origin.URL("/bearer")); r.status != http.StatusOK {
		t.Fatalf("%+v", r)
	}
	after := strings.ReplaceAll(d.cli(t, "", "source", "get", "api", "--json"), ": ", ":")
	if strings.Contains(after, used) || strings.Contains(after, resolved) {
		t.Errorf("after its first use: %s", after)
	}
}
