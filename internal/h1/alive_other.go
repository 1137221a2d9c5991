//go:build !unix

package h1

// Alive cannot look without reading here; a dead connection fails when it is used.
func (c *ClientConn) Alive() bool { return !c.broken }
