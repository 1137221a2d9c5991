package proxy

import "testing"

func TestBudget(t *testing.T) {
	b := newBudget(100)
	one, other, two := share{of: b, sandbox: "one"}, share{of: b, sandbox: "one"}, share{of: b, sandbox: "two"}
	if !one.hold(60) || other.hold(60) || !other.hold(40) || !two.hold(100) {
		t.Error("60 and 40 of 100, and another's")
	}
	one.but(60, 10) // less came
	if !other.hold(50) || other.hold(1) {
		t.Error("10, 40 and 50 of 100")
	}
	one.but(10, 20) // what came is as much as was asked for, and no more was taken
	one.release()
	one.release()
	if !other.hold(10) || other.hold(1) {
		t.Error("100 of 100")
	}
	other.release()
	two.release()
	if len(b.of) != 0 {
		t.Errorf("left: %v", b.of)
	}
}
