// Package wsframe carries a WebSocket (RFC 6455) from a client to an origin and back, frame
// by frame, where somebody has to see the messages inside. Relay is all of it; Rules say
// what is done to the messages of one direction.
//
// Every frame is checked before a byte of it leaves, each control frame passes at once, also
// between the fragments of a message, and whatever an endpoint may not send ends both sides
// with the Close code that the RFC has for it. What comes from the client is masked anew.
// Extensions must not have been negotiated: their bits are refused.
//
// A message that no rule wants whole streams: in one frame when it came in one and its
// length stays, otherwise in fragments as it arrives (RFC 6455 section 5.4 lets an
// intermediary do that). Memory for each direction is bounded by Options.Limit and 100 KiB.
package wsframe
