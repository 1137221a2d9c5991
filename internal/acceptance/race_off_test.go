//go:build !race

package acceptance

const (
	raceOn = false
	slack  = 1
)
