// Package archtest holds the architecture: its tests read every Go file of the module and
// fail where a package imports what it must not, or where code does what this house
// does not do. Each rule says why it is there; the tables are in rules_test.go. What it
// reads is source text, so that packages for other systems and packages that do not
// compile at the moment are held as well.
package archtest
