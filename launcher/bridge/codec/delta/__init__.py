"""Updates that carry only what has changed since the version that a replica has committed.

A message of the plan is compared, word by word, with the same message of that version. Words are as wide as the
smallest element type of the message, and are compared as bits: what is not a number, and the sign of a zero, count like
everything else. A change is the word's new value, so that nothing adds up over versions. On the wire, little-endian::

    message = head [body]             ; no body if it is empty
    head    = encoding count nbytes 0 ; four 64-bit integers: one of Encoding, changed words, bytes of the body
    body    = message                 ; WHOLE: as in a full update
            / positions pad values    ; INDEX: 32-bit positions, rising; padded to 16 bytes; the words in that order
            / bits pad values         ; MASK: a bit for every word of the message, the first one highest; then as above

Each message takes the shortest of these, and WHOLE if a larger share of its words has changed than
:data:`launcher.bridge.codec.delta.encode.WHOLE_ABOVE`. The digest of an update is that of the
whole resulting weights, as in a full update.
"""
