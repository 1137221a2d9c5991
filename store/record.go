package store

import "encoding/binary"

// Record is an unambiguous byte string for MACs and associated data: every part is
// preceded by its length, so no two lists of parts encode alike.
type Record []byte

// NewRecord starts a record; label separates the uses of one key from each other.
func NewRecord(label string) Record { return Record(nil).Str(label) }

// Str appends a string.
func (r Record) Str(s string) Record {
	r = binary.BigEndian.AppendUint32(r, uint32(len(s)))
	return append(r, s...)
}

// Bytes appends a byte string.
func (r Record) Bytes(b []byte) Record {
	r = binary.BigEndian.AppendUint32(r, uint32(len(b)))
	return append(r, b...)
}

// Uint appends a number.
func (r Record) Uint(u uint64) Record {
	r = binary.BigEndian.AppendUint32(r, 8)
	return binary.BigEndian.AppendUint64(r, u)
}
