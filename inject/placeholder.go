package inject

// Placeholders is the projection placeholder_substitution, rendered. Immutable.
type Placeholders struct{}
