// Package sigv4 signs again, with the operator's key, what a sandbox's AWS client has signed
// with a worthless one (AWS Signature Version 4; "Create a signed AWS API request" in the
// IAM User Guide, "Authenticating Requests" in the S3 API Reference). Read takes a request's
// claims, the caller then removes whatever else the client authenticated itself with, and
// Claim.Sign signs.
//
// What is taken over from the client's signature, and what is not:
//
//   - Region and service are claims of its credential scope. The rule's bounds hold them; the
//     service itself refuses a signature that is for another one. Where the rule binds no
//     service, services that give out AWS credentials (sts, iam, sso, …) are not signed for:
//     with what they answer a sandbox would work outside of egressd.
//   - Its key, date, signature and session token are dropped. The date is egressd's.
//   - Its list of signed headers is kept, without those that are not sent. Every X-Amz-* field
//     is signed, as S3 demands.
//   - X-Amz-Content-Sha256 is kept: the service compares it with the body. Without it S3 gets
//     UNSIGNED-PAYLOAD; other services sign the hash of the body, which must then be at hand
//     as a whole (Claim.NeedsBody).
//   - X-Amz-Expires of a presigned URL is shortened to MaxExpires: the URL goes out at once,
//     and what an origin repeats of it must not serve for long without egressd.
//   - A request without any signature is signed only where the rule binds region and service.
//
// Bodies of signed chunks (STREAMING-AWS4-HMAC-SHA256-PAYLOAD, with and without -TRAILER)
// leave in chunks of 64 KiB, whatever theirs were: a chunk's signature stands before its
// data, so that a chunk has to be held until it is hashed, and the length of the whole
// follows from X-Amz-Decoded-Content-Length before the first byte is there. For that, trailers
// are limited to the checksums whose length is known. Unsigned chunks
// (STREAMING-UNSIGNED-PAYLOAD-TRAILER) pass as they are.
//
// Refused: Signature Version 2 and 4A, event streams (STREAMING-AWS4-HMAC-SHA256-EVENTS),
// other schemes of Authorization, two signatures on one request, signed chunks behind a
// presigned URL, and, for services that normalise paths before they verify, paths that
// are not normal.
package sigv4
