package policydns

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func addrNumber(i int) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], 0x0b000000+uint32(i))
	return netip.AddrFrom4(b)
}

func TestMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemory()
		a, b := addrNumber(1), addrNumber(2)
		name := func(sandbox string, a netip.Addr, want string) {
			t.Helper()
			if got, ok := m.Name(sandbox, a); got != want || ok != (want != "") {
				t.Errorf("%s: %q %v, want %q", a, got, ok, want)
			}
		}
		m.Remember("one", "first.test", []netip.Addr{a, b}, time.Minute)
		name("one", a, "first.test")
		name("one", netip.AddrFrom16(a.As16()), "first.test")
		name("two", a, "")
		m.Remember("one", "second.test", []netip.Addr{a}, time.Minute)
		name("one", a, "second.test") // the last that was asked for
		name("one", b, "first.test")

		time.Sleep(59 * time.Minute)
		name("one", a, "second.test")
		m.Remember("one", "second.test", []netip.Addr{a}, time.Minute)
		time.Sleep(2 * time.Minute)
		name("one", a, "second.test")
		name("one", b, "")
		m.Remember("one", "long.test", []netip.Addr{b}, 3*time.Hour)
		time.Sleep(2 * time.Hour)
		name("one", b, "long.test")

		m.Remember("one", "none.test", nil, time.Hour)
		m.Forget("one")
		name("one", a, "")
		name("one", b, "")
		if m.total != 0 || m.books.Len() != 0 {
			t.Errorf("%d addresses, %d sandboxes are left", m.total, m.books.Len())
		}
		m.Forget("nobody")
	})
}

// TestMemoryIsBounded: one sandbox's answers push out its own, and at the bound of all
// those of who was active longest ago.
func TestMemoryIsBounded(t *testing.T) {
	m := NewMemory()
	for i := range maxPerBook + 100 {
		m.Remember("greedy", "x.test", []netip.Addr{addrNumber(i)}, time.Minute)
	}
	if _, ok := m.Name("greedy", addrNumber(0)); ok || m.total != maxPerBook {
		t.Errorf("the first is there: %v; %d addresses", ok, m.total)
	}
	if _, ok := m.Name("greedy", addrNumber(maxPerBook+99)); !ok {
		t.Error("the last is not there")
	}
	var batch []netip.Addr
	for i := range maxPerBook {
		batch = append(batch, addrNumber(i))
	}
	sandboxes := maxAddresses/maxPerBook + 3
	for i := range sandboxes {
		m.Remember(fmt.Sprint(i), "x.test", batch, time.Minute)
	}
	count := 0
	for _, sandbox := range m.books.Keys() {
		b, _ := m.books.Peek(sandbox)
		count += b.Len()
	}
	if m.total != count || m.total > maxAddresses {
		t.Errorf("%d addresses, counted as %d", count, m.total)
	}
	if _, ok := m.Name("greedy", addrNumber(maxPerBook+99)); ok {
		t.Error("who was active longest ago is there")
	}
	if _, ok := m.Name(fmt.Sprint(sandboxes-1), addrNumber(7)); !ok {
		t.Error("who was active last is not there")
	}
	for i := range maxBooks + 10 {
		m.Remember(fmt.Sprint("s", i), "x.test", batch[:1], time.Minute)
	}
	if m.books.Len() != maxBooks || m.total != maxBooks {
		t.Errorf("%d sandboxes, %d addresses", m.books.Len(), m.total)
	}
}

func TestMemoryConcurrently(t *testing.T) {
	m := NewMemory()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 500 {
				s := fmt.Sprint(j % 3)
				m.Remember(s, "x.test", []netip.Addr{addrNumber(i*500 + j)}, time.Minute)
				m.Name(s, addrNumber(j))
				if j%100 == 0 {
					m.Forget(s)
				}
			}
		})
	}
	wg.Wait()
}

func TestNewNamesComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClients(Limits{NewNames: 60}.withDefaults()).get("one")
		n := 0
		for c.bringsUp(fmt.Sprint(n)) {
			n++
		}
		if n != 120 {
			t.Errorf("a burst of %d", n)
		}
		if !c.bringsUp("5") || c.bringsUp("fresh") {
			t.Error("old names go, new ones do not")
		}
		time.Sleep(10 * time.Second)
		for n = 0; c.bringsUp(fmt.Sprint("later", n)); n++ {
		}
		if n != 10 {
			t.Errorf("%d names in ten seconds", n)
		}
	})
}
