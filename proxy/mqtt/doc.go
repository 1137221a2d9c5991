// Package mqtt logs a sandbox in at an MQTT broker (3.1, 3.1.1 and 5) with a credential
// that the sandbox never sees.
//
// The sandbox's CONNECT is parsed strictly and written anew with the credential's user name
// and password; client id, will, clean session, keep-alive and properties stay what they
// were. The broker's CONNACK goes back as it came, but where it refuses the login. From
// then on packets pass untouched: of what the sandbox sends only the fixed headers are
// looked at, so that no second CONNECT and no AUTH reaches the broker. A broker must
// close on a second CONNECT [MQTT-3.1.0-2], but one that took it for another login would
// let the sandbox in with an account of its own.
//
// Enhanced authentication (MQTT 5, section 4.12) is refused: whoever speaks it proves an
// identity of its own.
//
// Client ids are the sandbox's choice: two sandboxes that share a credential can take each
// other's sessions over, unless the broker keeps client ids apart by other means.
package mqtt
