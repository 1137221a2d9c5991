package h1

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"io"
	"net"
	"testing"
)

// corked counts its writes.
type corked struct {
	net.Conn
	held   *bytes.Buffer
	writes int
}

func (c *corked) Cork() { c.held = new(bytes.Buffer) }

func (c *corked) Uncork() error {
	b := c.held.Bytes()
	c.held = nil
	_, err := c.Write(b)
	return err
}

func (c *corked) Write(p []byte) (int, error) {
	if c.held != nil {
		return c.held.Write(p)
	}
	c.writes++
	return c.Conn.Write(p)
}

// A chunk with as much data as a TLS record holds is two records, and one write.
func TestChunkLeavesInOneWrite(t *testing.T) {
	server, client := tlsConfigs(t, tls.VersionTLS13)
	a, b := net.Pipe()
	under := &corked{Conn: a}
	near, far := tls.Server(under, server), tls.Client(b, client)
	t.Cleanup(func() { _ = a.Close(); _ = b.Close() })
	data := make([]byte, 256<<10) // crypto/tls begins with small records
	_, _ = rand.Read(data)
	failed := make(chan error, 1)
	go func() {
		_, err := near.Write(data)
		for i := 0; err == nil && i < 3; i++ {
			under.writes = 0
			err = writeWhole(near, appendChunk(nil, data[:maxRecord]))
			if under.writes != 1 {
				t.Errorf("%d writes", under.writes)
			}
		}
		failed <- err
	}()
	got := make([]byte, len(data)+3*(maxRecord+8))
	if _, err := io.ReadFull(far, got); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	chunk := appendChunk(nil, data[:maxRecord])
	if want := append(bytes.Clone(data), bytes.Repeat(chunk, 3)...); !bytes.Equal(got, want) {
		t.Error("other bytes came")
	}
	_ = a.Close()
	under.Conn = failing{a}
	if err := writeWhole(near, chunk); err == nil {
		t.Error("a write that was held back and failed is not told")
	}
}

type failing struct{ net.Conn }

func (failing) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }
