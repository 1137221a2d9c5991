package sniff

import "golang.org/x/crypto/cryptobyte"

// maxECHConfigs bounds how many configurations of one list are looked at.
const maxECHConfigs = 32

// ECHConfigIDs gives the ids of the configurations that an ECHConfigList, as an HTTPS record
// bears it, publishes (RFC 9849 section 4), those of versions that are not known left out.
// ok is false when the list is malformed; what was read before that is returned.
func ECHConfigIDs(list []byte) (ids []uint8, ok bool) {
	var configs cryptobyte.String
	s := cryptobyte.String(list)
	if !s.ReadUint16LengthPrefixed(&configs) || !s.Empty() {
		return nil, false
	}
	for range maxECHConfigs {
		if configs.Empty() {
			return ids, true
		}
		var version uint16
		var contents cryptobyte.String
		if !configs.ReadUint16(&version) || !configs.ReadUint16LengthPrefixed(&contents) {
			return ids, false
		}
		var id uint8
		switch {
		case version != extECH:
		case !contents.ReadUint8(&id):
			return ids, false
		default:
			ids = append(ids, id)
		}
	}
	return ids, configs.Empty()
}
