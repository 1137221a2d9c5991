//go:build race

package acceptance

const (
	raceOn = true // the binary is built with the detector as well
	slack  = 10   // times that are asserted are this many times longer
)
