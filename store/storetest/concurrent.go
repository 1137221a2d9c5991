package storetest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/egressd/egressd/store"
)

func testOneWins(t *testing.T, f *fixture) {
	oneWins(t, f, "api", f.Store)
}

func testSharedOneWins(t *testing.T, f *fixture, a, b store.Store) {
	oneWins(t, f, "contended", a, b)
}

// oneWins lets 1000 writers change version 1 at once.
func oneWins(t *testing.T, f *fixture, name string, stores ...store.Store) {
	t.Helper()
	if _, err := stores[0].Create(t.Context(), put(name, "first")); err != nil {
		t.Fatal(err)
	}
	const writers = 1000
	errs := make([]error, writers)
	start := make(chan struct{})
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			p := put(name, fmt.Sprintf("by %d", i))
			p.IfVersion = 1
			<-start
			_, _, errs[i] = stores[i%len(stores)].Update(t.Context(), p)
		})
	}
	close(start)
	wg.Wait()
	winner := -1
	for i, err := range errs {
		switch {
		case err == nil && winner >= 0:
			t.Errorf("both %d and %d won", winner, i)
		case err == nil:
			winner = i
		case !errors.Is(err, store.ErrStale):
			t.Errorf("writer %d: %v", i, err)
		}
	}
	if winner < 0 {
		t.Fatal("nobody won")
	}
	s, err := stores[0].Get(t.Context(), team, name, 0)
	if err != nil {
		t.Fatal(err)
	}
	spec, err := f.opener.Open(s)
	if err != nil || s.Version != 2 || string(spec) != fmt.Sprintf("by %d", winner) {
		t.Errorf("version %d holds %q, %v; the winner was %d", s.Version, spec, err, winner)
	}
}

// One source as porcupine sees it: a register that can be absent.
type (
	opKind uint8
	input  struct {
		source string
		op     opKind
		value  string
	}
	output struct {
		live    bool // the call found or made a source
		version uint64
		value   string
	}
)

const (
	opGet opKind = iota
	opCreate
	opUpdate
	opDelete
)

// step says whether a source in state could have answered so, and what it is then.
func step(state, in, out any) (bool, any) {
	s, i, o := state.(output), in.(input), out.(output)
	switch i.op {
	case opGet:
		return o == s, s
	case opCreate:
		if s.live {
			return !o.live, s
		}
		return o.live && o.version == 1, output{true, 1, i.value}
	case opUpdate:
		if !s.live {
			return !o.live, s
		}
		return o.live && o.version == s.version+1, output{true, s.version + 1, i.value}
	default:
		return o.live == s.live, output{}
	}
}

func testLinearizable(t *testing.T, f *fixture) {
	model := porcupine.Model{
		Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
			by := map[string][]porcupine.Operation{}
			for _, op := range history {
				name := op.Input.(input).source
				by[name] = append(by[name], op)
			}
			var parts [][]porcupine.Operation
			for _, part := range by {
				parts = append(parts, part)
			}
			return parts
		},
		Init: func() any { return output{} },
		Step: step,
	}
	const clients, each = 6, 60
	histories := make([][]porcupine.Operation, clients)
	start := time.Now()
	var wg sync.WaitGroup
	for c := range clients {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(c)))
			for n := range each {
				in := input{
					source: fmt.Sprintf("register-%d", rng.IntN(3)),
					op:     opKind(rng.IntN(4)),
					value:  fmt.Sprintf("%d/%d", c, n),
				}
				if in.op == opDelete && rng.IntN(2) == 0 {
					in.op = opUpdate
				}
				call := time.Since(start)
				out, err := f.apply(t, in)
				if err != nil {
					t.Errorf("%+v: %v", in, err)
					return
				}
				histories[c] = append(histories[c], porcupine.Operation{
					ClientId: c, Input: in, Output: out, Call: int64(call), Return: int64(time.Since(start)),
				})
			}
		})
	}
	wg.Wait()
	var history []porcupine.Operation
	for _, h := range histories {
		history = append(history, h...)
	}
	if got := porcupine.CheckOperationsTimeout(model, history, patience); got != porcupine.Ok {
		t.Errorf("%d operations: %s", len(history), got)
	}
}

// apply does one operation; expected refusals are answers, not errors.
func (f *fixture) apply(t *testing.T, in input) (output, error) {
	t.Helper()
	var m store.Meta
	var err error
	switch in.op {
	case opGet:
		var s store.Sealed
		if s, err = f.Get(t.Context(), team, in.source, 0); err == nil {
			spec, err := f.opener.Open(s)
			return output{true, s.Version, string(spec)}, err
		}
	case opCreate:
		m, err = f.Create(t.Context(), put(in.source, in.value))
	case opUpdate:
		m, _, err = f.Update(t.Context(), put(in.source, in.value))
	default:
		m, err = f.Delete(t.Context(), team, in.source, 0, "tester")
	}
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrExists) {
		return output{}, nil
	}
	return output{live: true, version: m.CurrentVersion}, err
}
