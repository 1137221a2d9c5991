package policy

// OnlyToken gives a copy of s in which nothing identifies a client but a proxy token
// whose SHA-256 is sum, sent with the user name id: it makes the client the sandbox id.
// What the files say under identify does not hold in it. It is for a proxy that one
// command has for itself, where an address would be that of every process of the
// machine. ok is false when there is no such sandbox.
func (s *Set) OnlyToken(id string, sum [32]byte) (only *Set, ok bool) {
	sb := s.Sandbox(id)
	if sb == nil {
		return nil, false
	}
	c := *s
	c.sources = identities{tokens: map[*Sandbox][][32]byte{sb: {sum}}}
	return &c, true
}
